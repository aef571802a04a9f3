//! Several caches as one: all or none, children by themselves, layers described once.
use kvc::*;
use std::sync::Barrier;

const KV: usize = 2;
const DIM: usize = 8;
const ROW: usize = KV * DIM;

fn desc(n_layers: i32) -> CacheDesc {
    CacheDesc {
        n_layers,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        max_sequences: 3,
        capacity: 32,
        max_batch: 8,
        ..Default::default()
    }
}

fn device() -> Device {
    Device::open("cpu", 1).unwrap()
}

fn full(n_layers: i32) -> Cache {
    let kind = Kind::Causal(CausalDesc::default());
    Cache::new(&device(), &desc(n_layers), &kind).unwrap()
}

fn window_kind() -> Kind {
    Kind::Causal(CausalDesc {
        reach: 4,
        memory: 6,
        ..Default::default()
    })
}

fn window(n_layers: i32) -> Cache {
    Cache::new(&device(), &desc(n_layers), &window_kind()).unwrap()
}

/// Layers: window, full, full.
fn wrapped() -> Cache {
    Cache::wrap(vec![full(2), window(1)], &[(1, 0), (0, 0), (0, 1)]).unwrap()
}

fn fails<T, E: Into<Error>>(result: std::result::Result<T, E>, status: Status, part: &str) {
    let error: Error = result.err().expect("this should have failed").into();
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error}");
}

fn put(layers: &mut Layers<'_>, layer: i32, n: usize, value: f32) {
    let rows = vec![value; n * ROW];
    let rows = Tensor::f32(&rows, &[n, KV, DIM]).unwrap();
    layers.put(layer, rows, rows).unwrap();
}

/// Returns the first element of each token's output in a layer, without the last bits.
fn seen(layers: &mut Layers<'_>, layer: i32, n: usize) -> Vec<f32> {
    let (q, mut out) = (vec![0.25; n * ROW], vec![9.0; n * ROW]);
    let shape = [n, KV, DIM];
    let into = TensorMut::f32(&mut out, &shape).unwrap();
    layers
        .attention(layer, Tensor::f32(&q, &shape).unwrap(), into)
        .unwrap();
    let firsts = out.iter().step_by(ROW);
    firsts.map(|x| (x * 1024.0).round() / 1024.0).collect()
}

fn add(cache: &mut Cache, sequence: i32, first: i32, n: usize) {
    let positions: Vec<i32> = (first..first + n as i32).collect();
    let mut pass = cache.begin(&positions, &vec![sequence; n]).unwrap();
    for layer in 0..3 {
        put(&mut pass, layer, n, 1.0);
    }
    pass.commit().unwrap();
}

fn nexts(cache: &Cache, sequence: i32) -> Vec<i32> {
    let all = std::iter::once(cache).chain(cache.children());
    all.map(|cache| cache.sequence(sequence).unwrap().next)
        .collect()
}

#[test]
fn a_pass_reaches_all_children() {
    let mut cache = wrapped();
    let mut pass = cache.begin(&[0, 1], &[0, 0]).unwrap();
    for (layer, value) in [(0, 1.0), (1, 2.0), (2, 3.0)] {
        put(&mut pass, layer, 2, value);
        assert_eq!(seen(&mut pass, layer, 2), [value; 2]);
    }
    let states: Vec<State> = pass
        .children()
        .iter()
        .map(|c| c.stats().unwrap().state)
        .collect();
    assert_eq!(states, [State::PASS; 2]); // reads go through the pass
    pass.commit().unwrap();
    assert_eq!(nexts(&cache, 0), [2; 3]);
    let before = cache.digest().unwrap();
    drop(cache.begin(&[2], &[0]).unwrap());
    assert_eq!(cache.digest().unwrap(), before);
    let mut gathered = [0.0; 2 * ROW];
    let into = TensorMut::f32(&mut gathered, &[2, KV, DIM]).unwrap();
    cache.gather(2, 0, Some(into), None).unwrap();
    assert_eq!(gathered, [3.0; 2 * ROW]);
    let owners: Vec<_> = (-1..4).map(|layer| cache.owner(layer)).collect();
    let places = [(1, 0), (0, 0), (0, 1)].map(Some);
    assert_eq!(owners, [&[None][..], &places, &[None]].concat());
    cache.check().unwrap();
}

#[test]
fn a_sequence_continues_where_every_child_can() {
    let mut cache = wrapped();
    add(&mut cache, 0, 0, 8);
    for position in 8..20 {
        add(&mut cache, 0, position, 1);
    }
    assert_eq!(nexts(&cache, 0), [20; 3]);
    let full_alone = cache.children()[0].can_resume(0, 2).unwrap();
    assert_eq!((full_alone, cache.can_resume(0, 2).unwrap()), (2, 0));
    let before = cache.digest().unwrap();
    fails(cache.remove(0, 2, SEQ_END), Status::WINDOW_LOST, "child 1");
    assert_eq!(cache.digest().unwrap(), before); // nor did the full cache remove anything
    assert_eq!(cache.copy_prefix(0, 1, 19).unwrap(), 19);
    assert_eq!(cache.resume(0, 2).unwrap(), 0);
    assert_eq!(nexts(&cache, 0), [0; 3]);
    assert_eq!(nexts(&cache, 1), [19; 3]);
}

/// Each thread has a child to itself, so no call returns BUSY; the barrier makes them overlap.
#[test]
fn threads_work_on_children_at_the_same_time() {
    let mut cache = wrapped();
    for position in 0..50 {
        let mut pass = cache
            .begin(&[position % 32, position % 32], &[0, 1])
            .unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let children = pass.children_mut();
            assert_eq!(children.len(), 2);
            for (mut child, n_layers) in children.zip([2, 1]) {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    for layer in 0..n_layers {
                        put(&mut child, layer, 2, 1.0);
                        assert_eq!(seen(&mut child, layer, 2), [1.0; 2]);
                        let (k, _) = child.get(layer).unwrap();
                        assert_eq!(k.f32(0, 0).unwrap(), [1.0; DIM]);
                        assert_eq!(child.sequence(1).unwrap().next, position % 32 + 1);
                    }
                });
            }
        });
        pass.commit().unwrap();
        if position % 32 == 31 {
            (0..2).for_each(|sequence| cache.remove(sequence, 0, SEQ_END).unwrap());
        }
    }
    let cache = &cache;
    let want = cache.digest().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..100).for_each(|_| assert_eq!(cache.digest(), Ok(want))));
        for child in cache.children() {
            scope.spawn(move || (0..100).for_each(|_| child.check().unwrap()));
        }
    });
}

#[test]
fn a_refused_wrap_returns_the_children() {
    let mut full = full(2);
    full.begin(&[0], &[0]).unwrap().commit().unwrap();
    let before = full.digest().unwrap();
    let refused = Cache::wrap(vec![window(1), full], &[]).err().unwrap();
    assert_eq!(refused.error.status, Status::BAD_STATE, "{refused}");
    assert_eq!(refused.to_string(), refused.error.to_string());
    let mut children = refused.children;
    assert_eq!(children[1].digest().unwrap(), before);
    children[1].remove(0, 0, SEQ_END).unwrap(); // it was never wrapped
    for layers in [&[(2, 0)][..], &[(0, 1)], &[(0, -1)], &[(1 << 40, 0)]] {
        let refused = Cache::wrap(children, layers).err().unwrap();
        assert_eq!(refused.error.status, Status::INVALID_ARGUMENT, "{refused}");
        children = refused.children;
    }
    let wrapper = Cache::wrap(children, &[]).unwrap();
    let refused = Cache::wrap(vec![wrapper], &[]).err().unwrap();
    assert_eq!(refused.error.status, Status::NOT_SUPPORTED, "{refused}");
    fails(Cache::wrap(vec![], &[]), Status::INVALID_ARGUMENT, "");
}

#[test]
fn children_can_be_used_alone_again() {
    let mut cache = wrapped();
    let watcher = cache.watcher();
    add(&mut cache, 0, 0, 3);
    let mut children = cache.into_children();
    fails(watcher.stats(), Status::HANDLE, "destroyed");
    assert_eq!(children.len(), 2);
    for child in &mut children {
        assert_eq!(child.sequence(0).unwrap().next, 3);
        child.remove(0, 0, SEQ_END).unwrap();
    }
    assert_eq!(full(1).into_children().len(), 0);
    assert!(full(1).children().is_empty() && full(1).owner(0).is_none());
}

/// Factors have a length that depends on the owner's head size, which C is not told.
#[test]
fn the_length_of_rope_factors_is_checked_for_every_owner() {
    let wide = CacheDesc {
        head_dim_k: 2 * DIM as i32,
        ..desc(1)
    };
    let wide = Cache::new(&device(), &wide, &window_kind()).unwrap();
    let mut cache = Cache::wrap(vec![full(1), wide], &[(0, 0), (1, 0)]).unwrap();
    let bind = |cache: &mut Cache, begin, end, n| {
        let desc = RopeDesc {
            frequency_factors: Some(&[1.0; DIM][..n]),
            ..Default::default()
        };
        cache.bind_rope(begin, end, &desc)
    };
    let (status, narrow, wide) = (Status::INVALID_ARGUMENT, DIM / 2, DIM);
    bind(&mut cache, 0, 1, narrow).unwrap();
    bind(&mut cache, 1, 2, wide).unwrap();
    fails(bind(&mut cache, 0, 2, narrow), status, "4 elements, not 8");
    fails(bind(&mut cache, 0, 2, wide), status, "8 elements, not 4");
    fails(bind(&mut cache, 1, 2, narrow), status, "4 elements, not 8");
    fails(bind(&mut cache, -1, 1, narrow), status, "layer_begin -1");
    fails(bind(&mut cache, 1, 3, wide), status, "layer_end 3");
    bind(&mut cache, 1, 1, narrow).unwrap(); // binds nothing
    let attention = AttentionDesc {
        n_q_heads: 4,
        ..Default::default()
    };
    cache.bind_attention(0, 2, &attention).unwrap();
}

#[test]
fn equal_layers_share_a_cache() {
    let [full, window] = [Kind::Causal(CausalDesc::default()), window_kind()].map(|kind| Layer {
        desc: desc(0),
        kind,
    });
    let layers = || (0..9).map(|i| if i % 3 == 2 { &full } else { &window });
    let mut cache = Cache::from_layers(&device(), layers()).unwrap();
    let owners: Vec<_> = (0..6).map(|layer| cache.owner(layer).unwrap()).collect();
    assert_eq!(owners, [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]);
    let bytes = Cache::layers_memory_bytes(&device(), layers()).unwrap();
    assert_eq!(cache.stats().unwrap().bytes, bytes);
    let mut pass = cache.begin(&[0], &[2]).unwrap();
    (0..9).for_each(|layer| put(&mut pass, layer, 1, layer as f32));
    let outs: Vec<_> = (0..9).map(|layer| seen(&mut pass, layer, 1)[0]).collect();
    assert_eq!(outs, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    pass.commit().unwrap();
    let other = Layer {
        desc: CacheDesc {
            n_kv_heads: 1,
            ..desc(0)
        },
        ..full.clone()
    };
    let cache = Cache::from_layers(&device(), [&full, &other, &full]).unwrap();
    assert_eq!(cache.children().len(), 2);
}

#[test]
fn layers_that_differ_in_how_a_default_is_written_share_a_cache() {
    let kinds = [window_kind(), Kind::Encoder(EncoderDesc::default())];
    for kind in kinds {
        let short = Layer {
            desc: desc(0),
            kind,
        };
        let mut long = short.clone();
        long.desc.dtype_k = DType::F32;
        long.desc.dtype_v = DType::F32;
        long.desc.head_dim_v = DIM as i32;
        let cache = Cache::from_layers(&device(), [&short, &long, &short]).unwrap();
        assert_eq!((cache.children().len(), cache.owner(2)), (1, Some((0, 2))));
        long.desc.dtype_v = DType::F16;
        let cache = Cache::from_layers(&device(), [&short, &long]).unwrap();
        assert_eq!(cache.children().len(), 2);
    }
    let bounds = CacheDesc {
        max_batch: 8,
        ..Default::default()
    };
    let states = |dtype| {
        Kind::Recurrent(RecurrentDesc {
            state_size: 4,
            conv_channels: 2,
            conv_dim: 3,
            dtype_state: dtype,
            dtype_conv: dtype,
            ..Default::default()
        })
    };
    let [short, mut long] = [DType(0), DType::F32].map(|dtype| Layer {
        desc: bounds.clone(),
        kind: states(dtype),
    });
    let cache = Cache::from_layers(&device(), [&short, &long]).unwrap();
    assert_eq!(cache.children().len(), 1);
    long.desc.dtype_k = DType::F32; // states have no keys: not hidden behind the layer before it
    fails(
        Cache::from_layers(&device(), [&short, &long]),
        Status::INVALID_ARGUMENT,
        "layer 1: ",
    );
}

#[test]
fn layers_that_make_no_model_are_refused() {
    let status = Status::INVALID_ARGUMENT;
    fails(Cache::from_layers(&device(), []), status, "no layers");
    fails(
        Cache::layers_memory_bytes(&device(), []),
        status,
        "no layers",
    );
    let layer = Layer {
        desc: desc(3),
        kind: window_kind(),
    };
    fails(
        Cache::from_layers(&device(), [&layer]),
        status,
        "layer 0 has n_layers 3",
    );
    let layer = Layer {
        desc: CacheDesc {
            capacity: 0,
            ..desc(0)
        },
        kind: window_kind(),
    };
    let full = Layer {
        desc: desc(0),
        kind: window_kind(),
    };
    let layers = [&full, &full, &layer];
    fails(
        Cache::from_layers(&device(), layers),
        status,
        "layer 2: capacity",
    );
    fails(
        Cache::layers_memory_bytes(&device(), layers),
        status,
        "layer 2: capacity",
    );
    let different = |n| -> Vec<Layer> {
        let of_capacity = |capacity| Layer {
            desc: CacheDesc {
                capacity,
                ..desc(0)
            },
            kind: window_kind(),
        };
        (1..=n).map(of_capacity).collect()
    };
    assert!(Cache::from_layers(&device(), &different(16)).is_ok());
    fails(
        Cache::from_layers(&device(), &different(17)),
        status,
        "the layers need 17 caches",
    );
}

#[test]
fn an_encoder_and_a_decoder_move_as_one() {
    let kinds = [
        Kind::Causal(CausalDesc::default()),
        Kind::Encoder(EncoderDesc::default()),
    ];
    let [own, cross] = kinds.map(|kind| Layer {
        desc: desc(0),
        kind,
    });
    let mut cache = Cache::from_layers(&device(), [&own, &cross, &own, &cross]).unwrap();
    let flags = [TOKEN_ENCODER_INPUT; 2];
    let mut pass = cache.begin_with(&[0, 0], &[0, 1], &flags).unwrap();
    pass.encoder_share(1, 0).unwrap();
    let input = [4.0; 5 * ROW];
    let input = Tensor::f32(&input, &[5, KV, DIM]).unwrap();
    for layer in [0, 2] {
        put(&mut pass, layer, 2, 1.0);
        pass.encoder_put(layer + 1, 0, input, input).unwrap();
        assert_eq!(seen(&mut pass, layer + 1, 2), [4.0; 2]);
    }
    pass.commit().unwrap();
    let held = cache.encoder_input(1).unwrap().unwrap();
    assert_eq!((held.position, held.length), (0, 5));
    assert_eq!(nexts(&cache, 1), [1; 3]);
}
