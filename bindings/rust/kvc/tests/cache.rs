//! What the wrapper adds to C: lengths, lifetimes, threads, messages.
use kvc::*;

const LAYERS: i32 = 2;
const KV: usize = 2;
const Q: usize = 4;
const DIM: usize = 16;

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: LAYERS,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        dtype_k: DType::F16,
        max_sequences: 2,
        capacity: 32,
        max_batch: 8,
        max_q_heads: Q as i32,
        ..Default::default()
    }
}

fn open() -> Cache {
    let device = Device::open("cpu", 2).unwrap(); // dropped at once: the cache keeps what it needs
    Cache::new(&device, &desc(), &Kind::Causal(CausalDesc::default())).unwrap()
}

fn run<'a>(cache: &'a mut Cache, sequence: i32, first: i32, n: usize) -> (Pass<'a>, Vec<f32>) {
    let (k, q) = (vec![0.5; n * KV * DIM], vec![0.0; n * Q * DIM]);
    let v: Vec<f32> = (0..n * KV * DIM)
        .map(|i| (i / (KV * DIM) + 1) as f32)
        .collect();
    let mut out = vec![0.0; n * Q * DIM];
    let positions: Vec<i32> = (0..n as i32).map(|i| first + i).collect();
    let mut pass = cache.begin(&positions, &vec![sequence; n]).unwrap();
    let kv = [n, KV, DIM];
    for layer in 0..LAYERS {
        let (k, v) = (Tensor::f32(&k, &kv).unwrap(), Tensor::f32(&v, &kv).unwrap());
        let q = Tensor::f32(&q, &[n, Q, DIM]).unwrap();
        pass.put_attention(
            layer,
            k,
            v,
            q,
            TensorMut::f32(&mut out, &[n, Q, DIM]).unwrap(),
        )
        .unwrap();
    }
    (pass, out)
}

fn fails<T>(result: Result<T>, status: Status, part: &str) {
    let error = result.err().expect("this should have failed");
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error}");
}

#[test]
fn a_pass_attends_and_shows_what_it_holds() {
    let mut cache = open();
    cache
        .bind_attention(
            0,
            LAYERS,
            &AttentionDesc {
                n_q_heads: Q as i32,
                ..Default::default()
            },
        )
        .unwrap();
    let (mut pass, out) = run(&mut cache, 0, 0, 3);
    // Queries of zeros weigh all keys alike: each token gets the mean of the values before it.
    for (token, want) in [1.0, 1.5, 2.0].iter().enumerate() {
        assert!((out[token * Q * DIM] - want).abs() < 1e-5);
    }
    let shape = pass.mask_shape(1).unwrap();
    let (n, history) = (shape[0], shape[1]);
    assert_eq!(shape, [3, history]);
    let mut mask = vec![9.0; n * history];
    pass.mask(1, TensorMut::f32(&mut mask, &shape).unwrap())
        .unwrap();
    let (k, v) = pass.get(1).unwrap();
    assert_eq!(
        (k.dtype(), v.dtype(), v.shape()),
        (DType::F16, DType::F32, &[history, KV, DIM][..])
    );
    let seen: Vec<f32> = (0..history)
        .filter(|&cell| mask[cell] == 0.0)
        .map(|cell| v.f32(cell, 1).unwrap()[5])
        .collect();
    assert_eq!(seen, [1.0]); // the first token sees itself
    assert_eq!(k.bits(0, 0).unwrap()[0], 0x3800); // one half
    assert!(k.f32(0, 0).is_none() && v.bits(0, 0).is_none());
    assert_eq!(pass.stats().unwrap().state, State::PASS);
    let mut columns = vec![0.0; 3 * KV * DIM];
    let into = TensorMut::f32(&mut columns, &[KV, DIM, 3]).unwrap();
    pass.gather_transposed(1, 0, None, Some(into)).unwrap();
    assert_eq!(columns[..6], [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]); // of two dimensions
    let mut keys = vec![0.0; 3 * KV * DIM];
    let into = TensorMut::f32(&mut keys, &[3, KV, DIM]).unwrap();
    pass.gather(1, 0, Some(into), None).unwrap();
    assert_eq!(keys, vec![0.5; 3 * KV * DIM]);
    pass.commit().unwrap();
    assert_eq!(cache.stats().unwrap().state, State::IDLE);
    assert_eq!(
        cache.begin_reserve(1).unwrap().stats().unwrap().state,
        State::RESERVE
    );

    let mut gathered = vec![0.0; 3 * KV * DIM];
    cache
        .gather(
            0,
            0,
            None,
            Some(TensorMut::f32(&mut gathered, &[3, KV, DIM]).unwrap()),
        )
        .unwrap();
    assert_eq!((gathered[0], gathered[3 * KV * DIM - 1]), (1.0, 3.0));
    let runs = cache.runs(0, 0).unwrap();
    assert_eq!((runs.len(), runs[0].length, runs[0].position), (1, 3, 0));
    cache.check().unwrap();
}

/// Threads share views and tensors like slices, and no Debug text contains an address.
#[test]
fn everything_is_shared_and_shown() {
    fn shared<T: Send + Sync + std::fmt::Debug>(value: &T) -> String {
        format!("{value:?}")
    }
    let mut cache = open();
    let (mut data, mask) = ([0.0; 6], [true; 4]);
    let texts = [
        shared(&Device::open("cpu", 1).unwrap()),
        shared(&cache),
        shared(&cache.watcher()),
        shared(&Tensor::f32(&data, &[2, 3]).unwrap()),
        shared(&Tensor::bool(&mask, &[4]).unwrap()),
        shared(&TensorMut::f32(&mut data, &[6]).unwrap()),
        shared(&AttentionExtra::default()),
        shared(&State(7)),
    ];
    assert!(
        texts[1].starts_with("Cache { state: IDLE, cells: 64, cells_used: 0"),
        "{}",
        texts[1]
    );
    assert!(
        texts[3].starts_with("Tensor { dtype: F32, shape: [2, 3]"),
        "{}",
        texts[3]
    );
    assert!(
        texts[4].starts_with("Tensor { dtype: BOOL, shape: [4]"),
        "{}",
        texts[4]
    );
    let (mut pass, _) = run(&mut cache, 0, 0, 3);
    assert!(shared(&pass).contains("state: PASS"), "{pass:?}");
    let (k, v) = pass.get(0).unwrap();
    assert!(
        shared(&k).starts_with("View { dtype: F16, shape: [3, 2, 16]"),
        "{k:?}"
    );
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(v.f32(2, 1).unwrap()[5], 3.0));
    });
    assert!(texts.iter().all(|text| !text.contains("0x")), "{texts:?}");
}

#[test]
fn a_pass_that_is_dropped_leaves_no_trace() {
    let mut cache = open();
    run(&mut cache, 0, 0, 4).0.commit().unwrap();
    let before = cache.digest().unwrap();
    drop(run(&mut cache, 0, 4, 2).0);
    assert_eq!(cache.digest().unwrap(), before);
    run(&mut cache, 0, 4, 2).0.abort().unwrap();
    assert_eq!(cache.digest().unwrap(), before);
    fails(
        run(&mut cache, 0, 4, 2).0.commit_prefix(&[0], &[3]),
        Status::INVALID_ARGUMENT,
        "",
    );
    assert_eq!(cache.digest().unwrap(), before);
    std::mem::forget(run(&mut cache, 0, 4, 2).0); // safe: the next begin commits it
    run(&mut cache, 0, 6, 1).0.commit().unwrap();
    assert_eq!(cache.sequence(0).unwrap().next, 7);
}

#[test]
fn sequences_are_shared_shifted_and_resumed() {
    let mut cache = open();
    cache
        .bind_rope(
            0,
            LAYERS,
            &RopeDesc {
                frequency_factors: Some(&[1.0; DIM / 2]),
                ..Default::default()
            },
        )
        .unwrap();
    let (mut pass, _) = run(&mut cache, 0, 0, 8);
    pass.set_causal(&[7]).unwrap();
    pass.set_causal(&[]).unwrap();
    assert_eq!(pass.sequence(0).unwrap().next, 8); // reads go through the pass
    pass.commit_prefix(&[0], &[6]).unwrap();
    assert_eq!(cache.copy_prefix(0, 1, 4), Ok(4));
    cache.can_remove(0, 1, 3).unwrap();
    cache.remove(0, 1, 3).unwrap();
    assert_eq!((cache.can_resume(0, 3), cache.resume(0, 3)), (Ok(3), Ok(3)));
    cache.reorder(&[0], &[1]).unwrap();
    let info = cache.sequence(0).unwrap();
    assert_eq!(
        info,
        SequenceInfo {
            first: 0,
            next: 4,
            count: 4,
            room: 28,
            lost_below: 0,
            approximate: false,
        }
    );
    let stats = cache.stats().unwrap();
    assert_eq!(
        (
            stats.cells,
            stats.cells_used,
            stats.cells_shared,
            stats.passes
        ),
        (64, 4, 4, 1)
    );
    let device = Device::open("cpu", 2).unwrap();
    assert_eq!(
        Cache::memory_bytes(&device, &desc(), &Kind::Causal(CausalDesc::default())),
        Ok(stats.bytes)
    );
    cache.begin_reserve(8).unwrap().commit().unwrap();
}

#[test]
fn what_c_cannot_check_is_checked_here() {
    let data = [0.0f32; 8];
    let mut cache = open();
    let short = Some(&data[..3]);
    let attention = AttentionDesc {
        n_q_heads: 4,
        sinks: short,
        ..Default::default()
    };
    fails(
        cache.bind_attention(0, 1, &attention),
        Status::INVALID_ARGUMENT,
        "3 elements",
    );
    let rope = RopeDesc {
        frequency_factors: short,
        ..Default::default()
    };
    fails(
        cache.bind_rope(0, 1, &rope),
        Status::INVALID_ARGUMENT,
        "3 elements",
    );
    fails(
        cache.begin(&[0], &[0, 0]),
        Status::INVALID_ARGUMENT,
        "1 and 2",
    );
    fails(cache.fits(&[0], &[9]), Status::INVALID_ARGUMENT, "9");
    let short = "2 and 1";
    fails(
        cache.begin_with(&[0, 1], &[0, 0], &[0]),
        Status::INVALID_ARGUMENT,
        short,
    );
    fails(
        cache.fits_with(&[0, 1], &[0, 0], &[0]),
        Status::INVALID_ARGUMENT,
        short,
    );
    fails(
        Device::open("c\0pu", 0),
        Status::INVALID_ARGUMENT,
        "zero byte",
    );
    fails(Device::open("cuda:9", 0), Status::BACKEND_UNAVAILABLE, "");
}

#[test]
fn an_error_says_its_status_and_why() {
    let mut cache = open();
    let error = cache.begin(&[0; 9], &[0; 9]).err().unwrap();
    assert_eq!(
        error.to_string(),
        format!("INVALID_ARGUMENT: {}", error.message)
    );
    assert_eq!(format!("{:?}", Status::CACHE_FULL), "CACHE_FULL(-20)");
    assert_eq!(Status(-12345).name(), "UNKNOWN");
    let _: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
    assert_eq!(version_number() >> 8, 2);
    assert!(!build_info().is_empty());
}

/// A message belongs to the thread whose call failed.
#[test]
fn messages_are_never_mixed_up() {
    let threads: Vec<_> = (0..64)
        .map(|thread| {
            std::thread::spawn(move || {
                let mut cache = open();
                let (k, shape) = (vec![0.0; KV * DIM], [1, KV, DIM]);
                for call in 0..100 {
                    let layer = 1000 + thread * 100 + call;
                    let mut pass = cache.begin(&[0], &[0]).unwrap();
                    let (k, v) = (
                        Tensor::f32(&k, &shape).unwrap(),
                        Tensor::f32(&k, &shape).unwrap(),
                    );
                    fails(
                        pass.put(layer, k, v),
                        Status::INVALID_ARGUMENT,
                        &format!("layer {layer} "),
                    );
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn caches_move_and_are_read_by_several_threads() {
    fn moves<T: Send + Sync>(value: T) -> T {
        value
    }
    let mut cache = moves(open());
    let (pass, _) = run(&mut cache, 0, 0, 8);
    pass.commit().unwrap();
    let cache = &cache;
    let want = cache.digest().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || (0..100).for_each(|_| assert_eq!(cache.digest(), Ok(want))));
        }
    });
}

#[test]
fn a_watcher_reads_while_a_pass_is_open_and_after_the_cache_is_gone() {
    let mut cache = open();
    let watcher = cache.watcher();
    let committed = watcher.stats().unwrap().passes;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || loop {
            let stats = watcher.stats().unwrap();
            assert!(stats.cells_used <= stats.cells);
            if stats.passes >= committed + 20 {
                return;
            }
        });
        for position in 0..20 {
            let (pass, _) = run(&mut cache, 0, position, 1);
            assert_eq!(watcher.stats().unwrap().state, State::PASS);
            pass.commit().unwrap();
        }
        reader.join().unwrap();
    });
    drop(cache);
    fails(watcher.stats(), Status::HANDLE, "destroyed");
}
