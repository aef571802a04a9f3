//! Attention without a cache.
mod support;
use kvc::*;
use support::{attend, fails, near, Random};

const KV: usize = 2;
const Q: usize = 4;
const DIM: usize = 8;

const ROWS: usize = 2;
const Q_LEN: usize = 3;
const KV_LEN: usize = 6;

fn bounds() -> OperatorDesc {
    OperatorDesc {
        max_rows: ROWS as i32,
        max_q_len: KV_LEN as i32,
        max_kv_len: KV_LEN as i32,
        n_kv_heads: KV as i32,
        max_q_heads: Q as i32,
        head_dim_k: DIM as i32,
        ..Default::default()
    }
}

/// Whether a query sees a key.
fn sees(desc: &ForwardDesc<'_>, query: usize, key: usize) -> bool {
    let p = query as i32
        + match desc.query_offset {
            0 => (KV_LEN - Q_LEN) as i32,
            NONE => 0,
            offset => offset,
        };
    let j = key as i32;
    (!desc.causal || j <= p)
        && (desc.reach == 0 || j >= p - desc.reach)
        && (desc.chunk == 0 || j >= p - p % desc.chunk)
}

#[test]
fn attention_without_a_cache_sees_what_it_should() {
    let device = Device::open("cpu", 2).unwrap();
    let mut flash = Operator::new(&device, "flash", &bounds()).unwrap();
    let mut random = Random(6);
    let [k, v] = [0; 2].map(|_| random.numbers(ROWS * KV_LEN * KV * DIM));
    let q = random.numbers(ROWS * Q_LEN * Q * DIM);
    let (slopes, all) = ([0.5, 0.25, 0.125, 0.0625], ForwardDesc::default());
    for desc in [
        all,
        ForwardDesc {
            causal: true,
            ..all
        },
        ForwardDesc {
            causal: true,
            reach: 2,
            query_offset: 1,
            ..all
        },
        ForwardDesc {
            causal: true,
            chunk: 4,
            query_offset: NONE,
            ..all
        },
        ForwardDesc {
            causal: true,
            alibi_slopes: Some(&slopes),
            ..all
        },
    ] {
        let keys = [ROWS, KV_LEN, KV, DIM];
        let queries = [ROWS, Q_LEN, Q, DIM];
        let (mut out, mut lse) = ([9.0; ROWS * Q_LEN * Q * DIM], [9.0; ROWS * Q_LEN * Q]);
        let into = TensorMut::f32(&mut out, &queries).unwrap();
        let extra = AttentionExtra {
            lse: Some(TensorMut::f32(&mut lse, &queries[..3]).unwrap()),
            ..Default::default()
        };
        let q_tensor = Tensor::f32(&q, &queries).unwrap();
        let [k_tensor, v_tensor] = [&k, &v].map(|x| Tensor::f32(x, &keys).unwrap());
        flash
            .forward_with(&desc, q_tensor, k_tensor, v_tensor, into, extra)
            .unwrap();
        for (i, q) in q.chunks(DIM).enumerate() {
            let (row, query, head) = (i / Q / Q_LEN, i / Q % Q_LEN, i % Q);
            let first = match desc.query_offset {
                0 => KV_LEN - Q_LEN,
                NONE => 0,
                offset => offset as usize,
            };
            let keys = (0..KV_LEN).filter(|&key| sees(&desc, query, key));
            let seen: Vec<_> = keys
                .map(|key| {
                    let at = ((row * KV_LEN + key) * KV + head / (Q / KV)) * DIM;
                    let distance = (first + query) as f64 - key as f64;
                    let slope = desc
                        .alibi_slopes
                        .map_or(0.0, |slopes| f64::from(slopes[head]));
                    (&k[at..][..DIM], &v[at..][..DIM], -slope * distance.abs())
                })
                .collect();
            let (want, sum) = attend(q, &seen, 1.0 / (DIM as f64).sqrt());
            let got = &out[i * DIM..][..DIM];
            assert!(
                got.iter().zip(&want).all(|(&got, &want)| near(got, want)),
                "{desc:?}"
            );
            assert!(near(lse[i], sum));
        }
    }
}

#[test]
fn attention_without_a_cache_names_what_is_wrong() {
    let (invalid, missing) = (Status::INVALID_ARGUMENT, Status::NOT_SUPPORTED);
    let device = Device::open("cpu", 2).unwrap();
    let mut op = Operator::new(&device, "flash", &bounds()).unwrap();
    let numbers = vec![0.5; 3 * KV_LEN * Q * DIM];
    let mut out = numbers.clone();
    let mut call = |desc: &ForwardDesc<'_>, q: &[usize], k: &[usize], extra: AttentionExtra<'_>| {
        let [q, k] = [q, k].map(|shape| (Tensor::f32(&numbers, shape).unwrap(), shape));
        let into = TensorMut::f32(&mut out, q.1).unwrap();
        op.forward_with(desc, q.0, k.0, k.0, into, extra)
    };
    let (q, k) = ([1, 2, Q, DIM], [1, 4, KV, DIM]);
    let (all, none) = (ForwardDesc::default(), AttentionExtra::default);
    call(&all, &q, &k, none()).unwrap();
    fails(
        call(&all, &[3, 2, Q, DIM], &[3, 4, KV, DIM], none()),
        Status::SHAPE,
        "max_rows",
    );
    fails(call(&all, &q[1..], &k, none()), Status::SHAPE, "q");
    let slopes = ForwardDesc {
        alibi_slopes: Some(&[0.5; 3]),
        ..all
    };
    fails(
        call(&slopes, &q, &k, none()),
        invalid,
        "alibi_slopes has 3 elements, not 4",
    );
    let sinks = ForwardDesc {
        sinks: Some(&[0.5; 5]),
        ..all
    };
    fails(
        call(&sinks, &q, &k, none()),
        invalid,
        "sinks has 5 elements, not 4",
    );
    let reach = ForwardDesc { reach: -1, ..all };
    fails(call(&reach, &q, &k, none()), invalid, "reach");
    let dropout = ForwardDesc {
        dropout: Some(0),
        ..all
    };
    fails(call(&dropout, &q, &k, none()), missing, "dropout");
    let extra = AttentionExtra {
        no_sinks: true,
        ..none()
    };
    fails(call(&all, &q, &k, extra), invalid, "extra");
    let mut unbounded = Operator::new(&device, "flash", &OperatorDesc::default()).unwrap();
    let [q, k] = [&q, &k].map(|shape| Tensor::f32(&numbers, shape).unwrap());
    let into = TensorMut::f32(&mut out, &[1, 2, Q, DIM]).unwrap();
    fails(unbounded.forward(&all, q, k, k, into), missing, "bounds");
}

#[test]
fn operators_move_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Operator>();
    let device = Device::open("cpu", 2).unwrap();
    let mut op = Operator::new(&device, "vanilla", &bounds()).unwrap();
    let moved = std::thread::spawn(move || {
        let x = [0.5; Q * DIM];
        let mut out = [0.0; Q * DIM];
        let q = Tensor::f32(&x, &[1, 1, Q, DIM]).unwrap();
        let k = Tensor::f32(&x, &[1, 1, KV, DIM]).unwrap();
        let into = TensorMut::f32(&mut out, &[1, 1, Q, DIM]).unwrap();
        op.forward(&ForwardDesc::default(), q, k, k, into).unwrap();
        (op.info().unwrap().name, out[0])
    });
    assert_eq!(moved.join().unwrap(), ("vanilla".to_string(), 0.5));
}
