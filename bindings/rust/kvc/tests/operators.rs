//! Operators by name: the registry, settings, layers that attend with them, partial results and dropout.
mod support;
use kvc::*;
use support::{fails, near, Random};

const KV: usize = 2;
const Q: usize = 4;
const DIM: usize = 8;
const N: usize = 12;

fn device() -> Device {
    Device::open("cpu", 2).unwrap()
}

fn open(device: &Device) -> Cache {
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        capacity: 64,
        max_batch: N as i32,
        max_q_heads: Q as i32,
        ..Default::default()
    };
    Cache::new(device, &desc, &Kind::Causal(CausalDesc::default())).unwrap()
}

struct Inputs {
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
}

impl Inputs {
    fn new(seed: u64, n: usize) -> Inputs {
        let mut random = Random(seed);
        let [k, v, q] = [KV, KV, Q].map(|heads| random.numbers(n * heads * DIM));
        Inputs { k, v, q }
    }

    /// K, V and queries.
    fn tensors(&self, tokens: &[usize]) -> [Tensor<'_>; 3] {
        [(&self.k, KV), (&self.v, KV), (&self.q, Q)].map(|(numbers, heads)| {
            Tensor::f32(numbers, &[tokens, &[heads, DIM]].concat()).unwrap()
        })
    }

    fn head<'i>(&self, of: &'i [f32], token: usize, query_head: usize) -> &'i [f32] {
        &of[(token * KV + query_head / (Q / KV)) * DIM..][..DIM]
    }
}

/// A pass over all tokens in which layer 0 attends.
fn attention(cache: &mut Cache, inputs: &Inputs, extra: AttentionExtra<'_>) -> Result<Vec<f32>> {
    let positions: Vec<i32> = (0..N as i32).collect();
    let mut out = vec![9.0; N * Q * DIM];
    let [k, v, q] = inputs.tensors(&[N]);
    let mut pass = cache.begin(&positions, &[0; N]).unwrap();
    let into = TensorMut::f32(&mut out, &[N, Q, DIM]).unwrap();
    pass.put_attention_with(0, k, v, q, into, extra)?;
    pass.abort().unwrap();
    Ok(out)
}

fn same(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(&a, &b)| near(a, f64::from(b))));
}

#[test]
fn the_registry_lists_names_and_aliases() {
    let device = device();
    let operators = device.operators().unwrap();
    let name_of = |info: &OperatorInfo| (info.name.clone(), info.canonical.clone());
    let names: Vec<_> = operators.iter().map(name_of).collect();
    for (name, canonical) in [
        ("flash", "flash"),
        ("paged_attention", "flash"),
        ("vanilla", "vanilla"),
        ("autoregressive_decodeattn", "decode"),
        ("ring", "ring"),
        ("lightning", "lightning"),
    ] {
        assert!(names.contains(&(name.into(), canonical.into())), "{name}");
        let found = device.operator_find(name).unwrap();
        assert!(operators.contains(&found));
        assert!(found.devices.contains(Devices::CPU));
    }
    let vanilla = device.operator_find("vanilla").unwrap();
    assert!(vanilla
        .features
        .contains(Features::DROPOUT | Features::SINKS));
    assert!(vanilla.softmax_dtypes.contains(DTypes::F64) && vanilla.storage.contains(DTypes::NF4));
    fails(device.operator_find("flash3"), Status::NOT_FOUND, "flash, ");
    fails(
        device.operator_find("fl\0ash"),
        Status::INVALID_ARGUMENT,
        "zero byte",
    );
}

#[test]
fn what_an_operator_lacks_is_named() {
    let device = device();
    let needs = OperatorNeeds {
        mode: Modes::PREFILL,
        ..Default::default()
    };
    assert_eq!(
        device.operator_supports(Some("sdpa"), &needs).unwrap(),
        "flash"
    );
    assert_eq!(device.operator_supports(None, &needs).unwrap(), "flash");
    let refused = device.operator_supports(Some("decode"), &needs);
    fails(refused, Status::NOT_SUPPORTED, "decode");
    let double = OperatorNeeds {
        softmax_dtype: DType::F64,
        ..needs
    };
    assert_eq!(device.operator_supports(None, &double).unwrap(), "vanilla");
    let two = OperatorNeeds {
        mode: Modes::ALL,
        ..needs
    };
    let refused = device.operator_supports(None, &two);
    fails(refused, Status::INVALID_ARGUMENT, "mode");
    let dtype = OperatorNeeds {
        dtype_k: DType(9),
        ..needs
    };
    fails(
        device.operator_supports(None, &dtype),
        Status::DTYPE,
        "dtype_k",
    );
    fails(
        device.operator_supports(Some(""), &needs),
        Status::NOT_FOUND,
        "",
    );
}

#[test]
fn settings_are_filled_in_and_rounded() {
    let base = OperatorDesc {
        block_k: 64,
        softmax_dtype: DType::F64,
        ..Default::default()
    };
    let desc = OperatorDesc {
        block_q: 3,
        no_scan: true,
        ..Default::default()
    };
    let resolved = desc.resolve(Some(&base)).unwrap();
    let want = OperatorDesc {
        block_k: 64,
        runtime_dtype: DType::F32,
        ..OperatorDesc {
            softmax_dtype: DType::F64,
            ..desc
        }
    };
    assert_eq!(resolved, want);
    let types = OperatorDesc {
        runtime_dtype: DType::F32,
        softmax_dtype: DType::F32,
        ..Default::default()
    };
    assert_eq!(OperatorDesc::default().resolve(None).unwrap(), types);

    let device = device();
    let settings = OperatorDesc {
        block_k: 33,
        runtime_dtype: DType::BF16,
        ..Default::default()
    };
    let flash = Operator::new(&device, "sdpa", &settings).unwrap();
    let info = flash.info().unwrap();
    assert_eq!((&*info.name, &*info.canonical), ("sdpa", "flash"));
    let used = flash.desc().unwrap().block_k;
    assert!(
        used >= 33 && used % info.block_k_multiple.max(1) == 0,
        "{used}"
    );
    assert_eq!(flash.desc().unwrap().runtime_dtype, DType::BF16);
    let ring = Operator::new(&device, "ring", &OperatorDesc::default()).unwrap();
    assert_eq!(ring.desc().unwrap().stretches, 2); // one for each thread
    assert_eq!(format!("{ring:?}"), r#"Operator { name: "ring", .. }"#);

    let (invalid, missing) = (Status::INVALID_ARGUMENT, Status::NOT_SUPPORTED);
    let refused = |desc, status, part| fails(Operator::new(&device, "flash", &desc), status, part);
    let all = OperatorDesc::default();
    refused(
        OperatorDesc {
            dropout_prob: 1.0,
            ..all
        },
        invalid,
        "dropout_prob",
    );
    refused(
        OperatorDesc {
            dropout_prob: 0.5,
            ..all
        },
        missing,
        "dropout",
    );
    refused(
        OperatorDesc {
            softmax_dtype: DType::F64,
            ..all
        },
        missing,
        "softmax_dtype",
    );
    refused(
        OperatorDesc {
            runtime_dtype: DType::Q8_0,
            ..all
        },
        Status::DTYPE,
        "runtime_dtype",
    );
    refused(OperatorDesc { block_b: 1, ..all }, missing, "block_b");
    refused(OperatorDesc { block_q: -1, ..all }, invalid, "block_q");
    refused(OperatorDesc { max_rows: 1, ..all }, invalid, "max_q_len");
    fails(
        Operator::new(&device, "none", &all),
        Status::NOT_FOUND,
        "none",
    );
}

#[test]
fn every_operator_attends_alike() {
    let inputs = Inputs::new(1, N);
    let chosen = attention(&mut open(&device()), &inputs, AttentionExtra::default()).unwrap();
    let all = OperatorDesc::default();
    for (name, settings) in [
        (
            "flash",
            OperatorDesc {
                block_q: 4,
                block_k: 16,
                ..all
            },
        ),
        (
            "vanilla",
            OperatorDesc {
                softmax_dtype: DType::F64,
                ..all
            },
        ),
        (
            "ring",
            OperatorDesc {
                stretches: 3,
                ..all
            },
        ),
        (
            "ring",
            OperatorDesc {
                stretches: 3,
                no_scan: true,
                ..all
            },
        ),
    ] {
        let device = device();
        let mut cache = open(&device);
        let op = Operator::new(&device, name, &settings).unwrap();
        drop(device); // in any order
        cache
            .bind_operator(0, 1, Modes::PREFILL, Some(&op))
            .unwrap();
        drop(op);
        same(
            &attention(&mut cache, &inputs, AttentionExtra::default()).unwrap(),
            &chosen,
        );
        cache.bind_operator(0, 1, Modes::ALL, None).unwrap();
        let unbound = attention(&mut cache, &inputs, AttentionExtra::default()).unwrap();
        assert_eq!(unbound, chosen);
    }
}

#[test]
fn an_operator_is_bound_where_it_can_do_what_the_layer_needs() {
    let device = device();
    let mut cache = open(&device);
    let all = OperatorDesc::default();
    let decode = Operator::new(&device, "decode", &all).unwrap();
    let mut bind = |begin, end, modes, op| cache.bind_operator(begin, end, modes, Some(op));
    fails(
        bind(0, 1, Modes::PREFILL, &decode),
        Status::NOT_SUPPORTED,
        "decode",
    );
    bind(0, 1, Modes::AUTOREGRESSIVE, &decode).unwrap();
    fails(
        bind(0, 2, Modes::ALL, &decode),
        Status::INVALID_ARGUMENT,
        "layer",
    );
    fails(
        bind(0, 1, Modes(0), &decode),
        Status::INVALID_ARGUMENT,
        "modes",
    );
    let lightning = Operator::new(&device, "lightning", &all).unwrap();
    fails(
        bind(0, 1, Modes::ALL, &lightning),
        Status::NOT_SUPPORTED,
        "lightning",
    );
    let scale = OperatorDesc {
        softmax_scale: 0.5,
        ..all
    };
    let scale = Operator::new(&device, "flash", &scale).unwrap();
    let constants = AttentionDesc {
        n_q_heads: Q as i32,
        scale: 0.25,
        ..Default::default()
    };
    cache.bind_attention(0, 1, &constants).unwrap();
    let bound = cache.bind_operator(0, 1, Modes::ALL, Some(&scale));
    fails(bound, Status::INVALID_ARGUMENT, "scale");
}

#[test]
fn dropout_drops_by_its_mask() {
    let (seed, prob) = (0x1234_5678_9abc, 0.375);
    let device = device();
    let mut cache = open(&device);
    let inputs = Inputs::new(2, N);
    let with_dropout = || AttentionExtra {
        dropout: Some(seed),
        ..Default::default()
    };
    let lacking = attention(&mut cache, &inputs, with_dropout());
    fails(lacking, Status::NOT_SUPPORTED, "dropout");
    let settings = OperatorDesc {
        dropout_prob: prob,
        ..Default::default()
    };
    let vanilla = Operator::new(&device, "vanilla", &settings).unwrap();
    cache
        .bind_operator(0, 1, Modes::TRAIN, Some(&vanilla))
        .unwrap();

    let positions: Vec<i32> = (0..N as i32).collect();
    let mut kept = vec![false; Q * N * N];
    let into = TensorMut::bool(&mut kept, &[Q, N, N]).unwrap();
    dropout_mask(seed, prob, 0, 0, &positions, &positions, into).unwrap();
    let mut weights = [9.0; Q * N * N];
    let extra = AttentionExtra {
        weights: Some(TensorMut::f32(&mut weights, &[Q, N, N]).unwrap()),
        ..with_dropout()
    };
    let out = attention(&mut cache, &inputs, extra).unwrap();
    let mut all = [9.0; Q * N * N];
    let extra = AttentionExtra {
        weights: Some(TensorMut::f32(&mut all, &[Q, N, N]).unwrap()),
        ..Default::default()
    };
    attention(&mut cache, &inputs, extra).unwrap();
    let factor = 1.0 / (1.0 - prob);
    for ((&weight, &whole), &kept) in weights.iter().zip(&all).zip(&kept) {
        assert!(near(
            weight,
            f64::from(if kept { whole * factor } else { 0.0 })
        ));
    }
    assert!(kept.contains(&true) && kept.contains(&false));
    for (i, &got) in out.iter().enumerate() {
        let (token, head, dim) = (i / DIM / Q, i / DIM % Q, i % DIM);
        let weighed = |j: usize| {
            let v = inputs.head(&inputs.v, j, head)[dim];
            f64::from(weights[(head * N + token) * N + j]) * f64::from(v)
        };
        assert!(near(got, (0..N).map(weighed).sum()));
    }
    let into = TensorMut::bool(&mut kept, &[Q, N, N]).unwrap();
    let refused = dropout_mask(seed, 1.0, 0, 0, &positions, &positions, into);
    fails(refused, Status::INVALID_ARGUMENT, "probability");
    let into = TensorMut::bool(&mut kept, &[Q, N, N]).unwrap();
    let refused = dropout_mask(seed, prob, 0, 0, &positions, &positions[1..], into);
    fails(refused, Status::SHAPE, "into");
}

#[test]
fn partial_results_are_merged_and_get_their_sinks() {
    let device = device();
    let mut cache = open(&device);
    let sinks = [0.5, -0.5, 1.0, 0.0];
    let constants = AttentionDesc {
        n_q_heads: Q as i32,
        sinks: Some(&sinks),
        ..Default::default()
    };
    cache.bind_attention(0, 1, &constants).unwrap();
    let inputs = Inputs::new(4, N);
    let whole = attention(&mut cache, &inputs, AttentionExtra::default()).unwrap();
    let (mut parts, mut sums) = (Vec::new(), Vec::new());
    for of_part in [0, 1] {
        let shows: Vec<bool> = (0..N).map(|column| column % 2 == of_part).collect();
        let mut lse = [9.0; N * Q];
        let extra = AttentionExtra {
            mask: Some(Tensor::bool(&shows, &[N]).unwrap()),
            lse: Some(TensorMut::f32(&mut lse, &[N, Q]).unwrap()),
            no_sinks: true,
            ..Default::default()
        };
        parts.push(attention(&mut cache, &inputs, extra).unwrap());
        sums.push(lse);
    }
    let (out, lse) = ([N, Q, DIM], [N, Q]);
    let (mut o, mut l) = (parts[0].clone(), sums[0]);
    let merge = |o: &mut [f32], l: &mut [f32]| {
        let (o2, l2) = (Tensor::f32(&parts[1], &out), Tensor::f32(&sums[1], &lse));
        let (o, l) = (TensorMut::f32(o, &out), TensorMut::f32(l, &lse));
        merge_attention(o.unwrap(), l.unwrap(), o2.unwrap(), l2.unwrap())
    };
    merge(&mut o, &mut l).unwrap();
    let into = TensorMut::f32(&mut o, &out).unwrap();
    let sums = Tensor::f32(&l, &lse).unwrap();
    fails(
        apply_sinks(into, sums, &sinks[1..]),
        Status::INVALID_ARGUMENT,
        "sinks has 3 elements, not 4",
    );
    let into = TensorMut::f32(&mut o, &out).unwrap();
    apply_sinks(into, sums, &sinks).unwrap();
    same(&o, &whole);
    let (short, into) = (
        Tensor::f32(&l, &[N]).unwrap(),
        TensorMut::f32(&mut o, &out).unwrap(),
    );
    fails(apply_sinks(into, short, &sinks), Status::SHAPE, "lse");
    let mut one = [0.0];
    let into = TensorMut::f32(&mut one, &[1]).unwrap();
    fails(apply_sinks(into, short, &sinks), Status::SHAPE, "o");
}

#[test]
fn heads_are_repeated_and_modes_are_told() {
    let heads: Vec<f32> = (0..2 * 3 * 2).map(|i| i as f32).collect();
    let mut repeated = [0.0; 2 * 6 * 2];
    let (input, shape) = (Tensor::f32(&heads, &[2, 3, 2]).unwrap(), [2, 6, 2]);
    repeat_kv_heads(input, 2, TensorMut::f32(&mut repeated, &shape).unwrap()).unwrap();
    for (i, row) in repeated.chunks(2).enumerate() {
        let head = (i / 6 * 3 + i % 6 / 2) * 2;
        assert_eq!(row, &heads[head..head + 2]);
    }
    let into = TensorMut::f32(&mut repeated, &shape).unwrap();
    fails(repeat_kv_heads(input, 3, into), Status::SHAPE, "out");

    let q = |shape: &[usize]| mode_of(Tensor::f32(&heads, shape).unwrap(), true);
    assert_eq!(q(&[2, 1, 3, 2]), Ok(Modes::AUTOREGRESSIVE));
    assert_eq!(q(&[1, 2, 3, 2]), Ok(Modes::TRAIN));
    let bhtd = mode_of(Tensor::f32(&heads, &[2, 3, 1, 2]).unwrap(), false);
    assert_eq!(bhtd, Ok(Modes::AUTOREGRESSIVE));
    fails(q(&[2, 6]), Status::SHAPE, "q");
}
