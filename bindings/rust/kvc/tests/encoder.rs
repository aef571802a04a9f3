//! Encoder caches: inputs of different lengths, replaced, shared, seen by position.
use kvc::*;

const LAYERS: i32 = 2;
const KV: usize = 2;
const DIM: usize = 8;
const ROW: usize = KV * DIM;
const CARRIES: u32 = TOKEN_ENCODER_INPUT;

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: LAYERS,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        max_sequences: 3,
        capacity: 16,
        max_batch: 4,
        ..Default::default()
    }
}

fn open(inputs: i32) -> Cache {
    let device = Device::open("cpu", 2).unwrap();
    Cache::new(&device, &desc(), &Kind::Encoder(EncoderDesc { inputs })).unwrap()
}

fn fails<T>(result: Result<T>, status: Status, part: &str) {
    let error = result.err().expect("this should have failed");
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error}");
}

/// Puts an input of equal keys, so that a query gets the mean of the values: `value`.
fn put(pass: &mut Pass<'_>, sequence: i32, length: usize, value: f32) {
    let (k, v) = (vec![0.5; length * ROW], vec![value; length * ROW]);
    let shape = [length, KV, DIM];
    for layer in 0..LAYERS {
        let (k, v) = (Tensor::f32(&k, &shape), Tensor::f32(&v, &shape));
        pass.encoder_put(layer, sequence, k.unwrap(), v.unwrap())
            .unwrap();
    }
}

/// Returns the first element of each token's output, without the last bits.
fn seen(pass: &mut Pass<'_>, n: usize) -> Vec<f32> {
    let (q, mut out) = (vec![0.25; n * ROW], vec![9.0; n * ROW]);
    let shape = [n, KV, DIM];
    let into = TensorMut::f32(&mut out, &shape).unwrap();
    pass.attention(LAYERS - 1, Tensor::f32(&q, &shape).unwrap(), into)
        .unwrap();
    let firsts = out.iter().step_by(ROW);
    firsts.map(|x| (x * 1024.0).round() / 1024.0).collect()
}

fn input(position: i32, length: i32) -> Option<EncoderInput> {
    Some(EncoderInput { position, length })
}

#[test]
fn tokens_see_the_newest_input_at_or_before_them() {
    let mut cache = open(0);
    let flags = [CARRIES, CARRIES, 0];
    let mut pass = cache.begin_with(&[0, 0, 0], &[0, 1, 2], &flags).unwrap();
    put(&mut pass, 0, 5, 1.0);
    put(&mut pass, 1, 16, 2.0);
    assert_eq!(seen(&mut pass, 3), [1.0, 2.0, 0.0]); // the third sequence has none
    assert_eq!(pass.encoder_input(1).unwrap(), input(0, 16)); // as if committed
    pass.commit().unwrap();
    assert_eq!(cache.encoder_input(2).unwrap(), None);

    let mut pass = cache
        .begin_with(&[1, 2, 3, 1], &[0, 0, 0, 1], &[0, CARRIES, 0, 0])
        .unwrap();
    put(&mut pass, 0, 7, 3.0);
    assert_eq!(seen(&mut pass, 4), [1.0, 3.0, 3.0, 2.0]);
    drop(pass); // the input before it is there again
    assert_eq!(cache.encoder_input(0).unwrap(), input(0, 5));
    let mut pass = cache.begin(&[1], &[0]).unwrap();
    assert_eq!(seen(&mut pass, 1), [1.0]); // without a put
    pass.commit().unwrap();
    cache.check().unwrap();
}

#[test]
fn put_stores_the_only_input_of_a_pass() {
    let mut cache = open(0);
    let rows = [0.5; 3 * ROW];
    let rows = Tensor::f32(&rows, &[3, KV, DIM]).unwrap();
    let mut pass = cache.begin_with(&[0], &[1], &[CARRIES]).unwrap();
    pass.put(0, rows, rows).unwrap();
    let (k, v) = pass.get(0).unwrap();
    assert_eq!(k.shape(), [3, KV, DIM]); // exactly the input
    assert_eq!(v.shape(), [3, KV, DIM]);
    assert_eq!(k.f32(2, 1).unwrap(), [0.5; DIM]);
    pass.commit().unwrap();
    assert_eq!(cache.encoder_input(1).unwrap(), input(0, 3));
    let mut pass = cache.begin(&[1], &[1]).unwrap();
    fails(pass.put(0, rows, rows), Status::BAD_STATE, "");
    drop(pass);
    let flags = [CARRIES; 2];
    let mut pass = cache.begin_with(&[1, 0], &[1, 0], &flags).unwrap();
    fails(pass.put(0, rows, rows), Status::INVALID_ARGUMENT, "");
}

#[test]
fn sequences_share_an_input() {
    let mut cache = open(0);
    let flags = [CARRIES; 2];
    let mut pass = cache.begin_with(&[0, 0], &[0, 1], &flags).unwrap();
    pass.encoder_share(1, 0).unwrap(); // that of the pass
    put(&mut pass, 0, 6, 4.0);
    assert_eq!(seen(&mut pass, 2), [4.0, 4.0]);
    pass.commit().unwrap();
    let mut pass = cache.begin_with(&[0], &[2], &[CARRIES]).unwrap();
    pass.encoder_share(2, 1).unwrap(); // one that is held
    assert_eq!(seen(&mut pass, 1), [4.0]);
    pass.commit().unwrap();
    let stats = cache.stats().unwrap();
    assert_eq!((stats.cells_used, stats.cells_shared), (6, 6));
    cache.remove(0, 0, SEQ_END).unwrap();
    cache.remove(1, 0, SEQ_END).unwrap();
    assert_eq!(cache.encoder_input(0).unwrap(), None);
    assert_eq!(cache.copy_prefix(2, 0, 1), Ok(1)); // a copy shares it by itself
    assert_eq!(cache.encoder_input(0).unwrap(), input(0, 6));
    let mut gathered = [0.0; 6 * ROW];
    let into = TensorMut::f32(&mut gathered, &[6, KV, DIM]).unwrap();
    cache.gather(1, 0, None, Some(into)).unwrap();
    assert_eq!(gathered, [4.0; 6 * ROW]);
}

#[test]
fn a_sequence_steps_back_to_where_it_saw_what_it_holds() {
    let mut cache = open(0);
    for position in [0, 4] {
        let mut pass = cache.begin_with(&[position], &[0], &[CARRIES]).unwrap();
        put(&mut pass, 0, 3, 1.0);
        pass.commit().unwrap();
    }
    let places = [9, 5, 4, 1].map(|want| cache.can_resume(0, want).unwrap());
    assert_eq!(places, [5, 5, 0, 0]);
    fails(cache.remove(0, 3, SEQ_END), Status::WINDOW_LOST, "");
    let mut pass = cache.begin_with(&[5, 6], &[0, 0], &[0, CARRIES]).unwrap();
    put(&mut pass, 0, 2, 2.0);
    pass.commit_prefix(&[0], &[1]).unwrap(); // the input goes with its token
    assert_eq!(cache.encoder_input(0).unwrap(), input(4, 3));
}

#[test]
fn errors_of_inputs_name_what_is_wrong() {
    let mut cache = open(1);
    let rows = [0.5; 17 * ROW];
    let of = |length: usize| Tensor::f32(&rows, &[length, KV, DIM]).unwrap();
    let two = [CARRIES; 2];
    let (sequences, positions) = ([0, 1], [0, 0]);
    fails(
        cache.fits_with(&positions, &sequences, &two),
        Status::CACHE_FULL,
        "",
    );
    fails(
        cache.begin_with(&[0, 1], &[0, 0], &two),
        Status::INVALID_ARGUMENT,
        "",
    );
    let mut pass = cache.begin_with(&[0], &[0], &[CARRIES]).unwrap();
    fails(
        pass.encoder_put(LAYERS, 0, of(2), of(2)),
        Status::INVALID_ARGUMENT,
        "layer 2",
    );
    fails(
        pass.encoder_put(0, 1, of(2), of(2)),
        Status::INVALID_ARGUMENT,
        "sequence 1",
    );
    fails(pass.encoder_put(0, 0, of(17), of(17)), Status::SHAPE, "17");
    fails(pass.encoder_share(0, 1), Status::NOT_FOUND, "");
    fails(pass.encoder_share(0, 0), Status::INVALID_ARGUMENT, "");
    pass.encoder_put(0, 0, of(2), of(2)).unwrap();
    fails(pass.encoder_put(1, 0, of(3), of(3)), Status::SHAPE, "");
    fails(pass.encoder_share(0, 1), Status::BAD_STATE, "");
    drop(pass);
    fails(
        cache.encoder_input(3),
        Status::INVALID_ARGUMENT,
        "sequence 3",
    );

    let device = Device::open("cpu", 1).unwrap();
    let mut causal = Cache::new(&device, &desc(), &Kind::Causal(CausalDesc::default())).unwrap();
    fails(causal.encoder_input(0), Status::NOT_SUPPORTED, "");
    fails(
        causal.begin_with(&[0], &[0], &[CARRIES]),
        Status::INVALID_ARGUMENT,
        "",
    );
    let mut pass = causal.begin(&[0], &[0]).unwrap();
    fails(
        pass.encoder_put(0, 0, of(1), of(1)),
        Status::NOT_SUPPORTED,
        "",
    );
    fails(pass.encoder_share(0, 1), Status::NOT_SUPPORTED, "");
}

/// `encoder_input` takes `&self`: threads may call it at the same time, also in an open pass.
#[test]
fn threads_read_the_inputs_of_an_open_pass() {
    let mut cache = open(0);
    let mut pass = cache.begin_with(&[0], &[0], &[CARRIES]).unwrap();
    put(&mut pass, 0, 5, 1.0);
    let reading = &pass;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                (0..1000).for_each(|_| assert_eq!(reading.encoder_input(0).unwrap(), input(0, 5)));
            });
        }
    });
    pass.commit().unwrap();
}

#[test]
fn a_cache_of_more_inputs_takes_more_memory() {
    let device = Device::open("cpu", 2).unwrap();
    let bytes = |inputs| {
        Cache::memory_bytes(&device, &desc(), &Kind::Encoder(EncoderDesc { inputs })).unwrap()
    };
    assert!(bytes(1) < bytes(100) && bytes(100) < bytes(1000));
    assert_eq!(open(0).stats().unwrap().bytes, bytes(0));
    assert_eq!(open(3).stats().unwrap().cells, 3 * 16);
}
