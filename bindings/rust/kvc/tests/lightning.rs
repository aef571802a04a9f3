//! Lightning caches: random passes beside the recurrence by its definition, states that come and go,
//! rows, slopes, and what is refused.
mod support;
use kvc::*;
use support::{fails, Random};

const LAYERS: i32 = 2;
const KV: usize = 2;
const Q: usize = 4;
const DIM_K: usize = 8;
const DIM_V: usize = 5;
const SEQUENCES: usize = 3;
const STATE: usize = KV * DIM_K * DIM_V;
const SLOPES: [f32; KV] = [0.25, 0.03];

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: LAYERS,
        n_kv_heads: KV as i32,
        head_dim_k: DIM_K as i32,
        head_dim_v: DIM_V as i32,
        max_sequences: SEQUENCES as i32,
        max_batch: 12,
        ..Default::default()
    }
}

fn kind() -> LightningDesc {
    LightningDesc {
        draft_states: 4,
        checkpoint_interval: NONE,
        ..Default::default()
    }
}

fn open(kind: LightningDesc) -> Cache {
    let device = Device::open("cpu", 1).unwrap();
    let mut cache = Cache::new(&device, &desc(), &Kind::Lightning(kind)).unwrap();
    cache.bind_decay(0, LAYERS, &SLOPES).unwrap();
    cache
}

/// A sequence by the definition: where it continues, and the state of each layer as of there.
#[derive(Clone)]
struct Sequence {
    next: i32,
    states: Vec<Vec<f64>>,
}

impl Sequence {
    fn new() -> Sequence {
        Sequence {
            next: 0,
            states: vec![vec![0.0; STATE]; LAYERS as usize],
        }
    }

    /// Lets time pass up to the token at `position`, adds the token and returns its outputs.
    fn step(&mut self, layer: usize, position: i32, token: &Token<'_>) -> Vec<f64> {
        let mut out = vec![0.0; Q * DIM_V];
        for (head, &slope) in SLOPES.iter().enumerate() {
            let state = &mut self.states[layer][head * DIM_K * DIM_V..][..DIM_K * DIM_V];
            let decay = (-f64::from(slope) * f64::from(position - self.next + 1)).exp();
            state.iter_mut().for_each(|x| *x *= decay);
            for (i, x) in state.iter_mut().enumerate() {
                if !token.masked {
                    let (k, v) = (
                        token.k[head * DIM_K + i / DIM_V],
                        token.v[head * DIM_V + i % DIM_V],
                    );
                    *x += f64::from(k) * f64::from(v);
                }
                for q in head * Q / KV..(head + 1) * Q / KV {
                    out[q * DIM_V + i % DIM_V] += f64::from(token.q[q * DIM_K + i / DIM_V]) * *x;
                }
            }
        }
        out
    }
}

struct Token<'a> {
    k: &'a [f32],
    v: &'a [f32],
    q: &'a [f32],
    masked: bool,
}

/// The inputs of a pass, of each layer: K, V and queries.
type Inputs = Vec<[Vec<f32>; 3]>;

fn inputs(random: &mut Random, n: usize) -> Inputs {
    let sizes = [KV * DIM_K, KV * DIM_V, Q * DIM_K];
    (0..LAYERS)
        .map(|_| sizes.map(|size| random.numbers(n * size)))
        .collect()
}

fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (&got, &want) in got.iter().zip(want) {
        assert!((f64::from(got) - want).abs() < 2e-4, "{got} {want}");
    }
}

fn states_of(cache: &Cache, layer: i32) -> Vec<f32> {
    let mut states = vec![9.0; SEQUENCES * STATE];
    let into = TensorMut::f32(&mut states, &[SEQUENCES, KV, DIM_K, DIM_V]).unwrap();
    cache.lightning_read(layer, 0, into).unwrap();
    states
}

#[test]
fn passes_do_what_the_recurrence_says() {
    let mut random = Random(3);
    let mut cache = open(kind());
    let mut model = vec![Sequence::new(); SEQUENCES];
    for _ in 0..120 {
        let n = random.range(1, 13) as usize;
        let mut next: Vec<i32> = model.iter().map(|s| s.next).collect();
        let (mut positions, mut sequences, mut flags) = (vec![], vec![], vec![]);
        for _ in 0..n {
            let sequence = random.range(-1, SEQUENCES as i32);
            sequences.push(sequence); // -1: padding
            let masked = sequence >= 0 && random.one_in(4);
            flags.push(if masked { TOKEN_MASKED } else { 0 });
            positions.push(0);
            if sequence >= 0 {
                let next = &mut next[sequence as usize];
                *positions.last_mut().unwrap() =
                    *next + [0, random.range(0, 9)][random.range(0, 2) as usize];
                *next = positions.last().unwrap() + 1;
            }
        }
        let inputs = inputs(&mut random, n);
        let mut after = model.clone();
        // What each sequence has after each of its tokens, for a prefix.
        let mut steps: Vec<Vec<Sequence>> = model.iter().map(|s| vec![s.clone()]).collect();
        let mut want = vec![vec![0.0; n * Q * DIM_V]; LAYERS as usize];
        for (token, &sequence) in sequences.iter().enumerate() {
            if sequence == PADDING {
                continue;
            }
            let of = sequence as usize;
            for (layer, [k, v, q]) in inputs.iter().enumerate() {
                let token_inputs = Token {
                    k: &k[token * KV * DIM_K..][..KV * DIM_K],
                    v: &v[token * KV * DIM_V..][..KV * DIM_V],
                    q: &q[token * Q * DIM_K..][..Q * DIM_K],
                    masked: flags[token] != 0,
                };
                let out = after[of].step(layer, positions[token], &token_inputs);
                want[layer][token * Q * DIM_V..][..Q * DIM_V].copy_from_slice(&out);
            }
            after[of].next = positions[token] + 1;
            steps[of].push(after[of].clone());
        }

        let mut pass = cache.begin_with(&positions, &sequences, &flags).unwrap();
        for (layer, [k, v, q]) in (0..).zip(&inputs) {
            let mut out = vec![9.0; n * Q * DIM_V];
            let into = TensorMut::f32(&mut out, &[n, Q, DIM_V]).unwrap();
            let k = Tensor::f32(k, &[n, KV, DIM_K]).unwrap();
            let v = Tensor::f32(v, &[n, KV, DIM_V]).unwrap();
            let q = Tensor::f32(q, &[n, Q, DIM_K]).unwrap();
            if random.one_in(2) {
                pass.put_attention(layer, k, v, q, into).unwrap();
            } else {
                pass.put(layer, k, v).unwrap();
                pass.attention(layer, q, into).unwrap();
            }
            close(&out, &want[layer as usize]);
        }
        match random.range(0, 4) {
            0 => pass.abort().unwrap(),
            1 => {
                let cut = random.range(0, SEQUENCES as i32);
                let n = steps[cut as usize].len() - 1;
                let keep = random.range(0, n as i32 + 1);
                let cut_short = keep > 0 && keep < n as i32;
                if cut_short && n > 5 {
                    let refused = pass.commit_prefix(&[cut], &[keep]);
                    fails(refused, Status::NOT_SUPPORTED, "draft_states"); // and aborted
                    continue;
                }
                pass.commit_prefix(&[cut], &[keep]).unwrap();
                after[cut as usize] = steps[cut as usize][keep as usize].clone();
                model = after;
            }
            _ => {
                pass.commit().unwrap();
                model = after;
            }
        }
        for layer in 0..LAYERS {
            let want = model.iter().flat_map(|s| s.states[layer as usize].clone());
            close(&states_of(&cache, layer), &want.collect::<Vec<f64>>());
        }
        cache.check().unwrap();
    }
}

/// Puts one token of each row, or of a list.
fn put_all(pass: &mut Pass<'_>, tokens: &[usize], inputs: &Inputs) -> Vec<f32> {
    let n: usize = tokens.iter().product();
    let shape = |last: [usize; 2]| [tokens, &last[..]].concat();
    let mut out = vec![9.0; n * Q * DIM_V];
    for (layer, [k, v, q]) in (0..).zip(inputs) {
        let k = Tensor::f32(k, &shape([KV, DIM_K])).unwrap();
        let v = Tensor::f32(v, &shape([KV, DIM_V])).unwrap();
        let q = Tensor::f32(q, &shape([Q, DIM_K])).unwrap();
        let into = TensorMut::f32(&mut out, &shape([Q, DIM_V])).unwrap();
        pass.put_attention(layer, k, v, q, into).unwrap();
    }
    out
}

#[test]
fn a_pass_of_rows_is_the_pass_of_its_tokens() {
    let (mut by_rows, mut by_list) = (open(kind()), open(kind()));
    let inputs = inputs(&mut Random(5), SEQUENCES * 2);
    let hidden = [true, false, true, true, true, true];
    let batch = RowBatch {
        valid: Some(&[2, 2, 1]),
        attention_mask: Some(Tensor::bool(&hidden, &[SEQUENCES, 2]).unwrap()),
        ..Default::default()
    };
    by_rows.fits_rows(2, &batch).unwrap();
    let mut pass = by_rows.begin_rows(2, &batch).unwrap();
    let out = put_all(&mut pass, &[SEQUENCES, 2], &inputs);
    pass.commit().unwrap();
    let (sequences, flags) = ([0, 0, 1, 1, 2, PADDING], [0, TOKEN_MASKED, 0, 0, 0, 0]);
    let mut pass = by_list
        .begin_with(&[0, 1, 0, 1, 0, 0], &sequences, &flags)
        .unwrap();
    assert_eq!(put_all(&mut pass, &[SEQUENCES * 2], &inputs), out);
    pass.commit().unwrap();
    assert_eq!(by_rows.digest(), by_list.digest());

    // An index is a label of time; 0 empties a row.
    by_rows.rows_set(0, Some(&[100, 0]), None).unwrap();
    let mut index = [9; SEQUENCES];
    by_rows.rows_query(0, Some(&mut index), None).unwrap();
    assert_eq!(index, [100, 0, 1]);
    fails(
        by_rows.rows_set(0, None, Some(&[1])),
        Status::INVALID_ARGUMENT,
        "starts",
    );
    let states = states_of(&by_rows, 1);
    assert_eq!(states[..STATE], states_of(&by_list, 1)[..STATE]);
    assert_eq!(states[STATE..2 * STATE], [0.0; STATE]);

    let mut other = open(kind());
    other.insert(&by_list, 0).unwrap();
    assert_eq!(other.digest(), by_list.digest());
    other.bind_decay(0, 1, &[0.5; KV]).unwrap_err(); // it is not empty
}

#[test]
fn states_come_and_go_and_checkpoints_bring_them_back() {
    let mut cache = open(kind());
    let run = |cache: &mut Cache, position, seed| {
        let mut pass = cache.begin(&[position], &[1]).unwrap();
        let out = put_all(&mut pass, &[1], &inputs(&mut Random(seed), 1));
        pass.commit().unwrap();
        out
    };
    run(&mut cache, 0, 1);
    cache.checkpoint_take(1).unwrap();
    assert_eq!(cache.checkpoint_list(1).unwrap(), [1]);
    let out = run(&mut cache, 1, 2);
    assert_eq!(cache.resume(1, 1).unwrap(), 1);
    assert_eq!(run(&mut cache, 1, 2), out);

    let one = states_of(&cache, 0)[STATE..2 * STATE].to_vec();
    let halved: Vec<f32> = one.iter().map(|x| x / 2.0).collect();
    let shape = [1, KV, DIM_K, DIM_V];
    let from = Tensor::f32(&halved, &shape).unwrap();
    cache.lightning_write(0, 1, from).unwrap();
    assert_eq!(states_of(&cache, 0)[STATE..2 * STATE], halved);
    assert!(cache.checkpoint_list(1).unwrap().is_empty());
    fails(cache.lightning_write(0, 0, from), Status::BAD_STATE, "");
    let short = Tensor::f32(&halved, &[1, KV, DIM_V, DIM_K]).unwrap();
    fails(cache.lightning_write(0, 1, short), Status::SHAPE, "state");
    fails(
        cache.lightning_write(LAYERS, 1, from),
        Status::INVALID_ARGUMENT,
        "layer",
    );
    let mut bits = [0u16; STATE];
    let into = TensorMut::f16(&mut bits, &shape).unwrap();
    fails(cache.lightning_read(0, 1, into), Status::DTYPE, "state");
}

#[test]
fn middle_parts_are_removed_where_that_is_allowed() {
    let approximate = LightningDesc {
        approximate: true,
        ..kind()
    };
    for (kind, allowed) in [(kind(), false), (approximate, true)] {
        let mut cache = open(kind);
        let mut pass = cache.begin(&[0, 1, 2], &[0; 3]).unwrap();
        put_all(&mut pass, &[3], &inputs(&mut Random(7), 3));
        pass.commit().unwrap();
        let removed = cache.remove(0, 1, 2);
        assert_eq!(removed.is_ok(), allowed, "{removed:?}");
        assert_eq!(cache.sequence(0).unwrap().approximate, allowed);
    }
}

#[test]
fn what_a_lightning_cache_lacks_is_refused() {
    let (invalid, missing) = (Status::INVALID_ARGUMENT, Status::NOT_SUPPORTED);
    let device = Device::open("cpu", 1).unwrap();
    let kind = Kind::Lightning(LightningDesc::default());
    let with_capacity = CacheDesc {
        capacity: 8,
        ..desc()
    };
    fails(
        Cache::new(&device, &with_capacity, &kind),
        invalid,
        "capacity",
    );
    let block = LightningDesc {
        block: 1025,
        ..Default::default()
    };
    let memory = Cache::memory_bytes(&device, &desc(), &Kind::Lightning(block));
    fails(memory, invalid, "block");

    let mut cache = Cache::new(&device, &desc(), &kind).unwrap();
    fails(
        cache.bind_decay(0, 1, &[0.5; KV + 1]),
        invalid,
        "slopes has 3 elements, not 2",
    );
    fails(cache.bind_decay(0, 1, &[0.5, -1.0]), invalid, "slopes[1]");
    fails(cache.bind_decay(0, LAYERS + 1, &SLOPES), invalid, "layer");
    let (x, y) = ([0.5; KV * DIM_K], [0.5; KV * DIM_V]);
    let k = Tensor::f32(&x, &[1, KV, DIM_K]).unwrap();
    let v = Tensor::f32(&y, &[1, KV, DIM_V]).unwrap();
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    fails(pass.put(0, k, v), Status::BAD_STATE, "kvc_bind_decay");
    fails(pass.get(0), missing, "");
    fails(pass.mask_shape(0), missing, "");
    fails(pass.rows_view(0), missing, "");
    drop(pass);
    cache.bind_decay(0, LAYERS, &SLOPES).unwrap();
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    pass.put(0, k, v).unwrap();
    let mut lse = [0.0; KV];
    let mut out = [0.0; KV * DIM_V];
    let extra = AttentionExtra {
        lse: Some(TensorMut::f32(&mut lse, &[1, KV]).unwrap()),
        ..Default::default()
    };
    let into = TensorMut::f32(&mut out, &[1, KV, DIM_V]).unwrap();
    fails(
        pass.attention_with(0, k, into, extra),
        missing,
        "log-sum-exp",
    );
    drop(pass);
    let types = RowBatch {
        token_types: Some(&[1; SEQUENCES]),
        ..Default::default()
    };
    fails(cache.begin_rows(1, &types), missing, "token_types");
    let kind = Kind::Causal(CausalDesc::default());
    let mut causal = Cache::new(&device, &with_capacity, &kind).unwrap();
    fails(causal.bind_decay(0, 1, &SLOPES), missing, "");
    fails(causal.fits_rows(1, &RowBatch::default()), missing, "");
}

#[test]
fn slopes_are_those_of_their_families() {
    let geometric = |h: f64, n: f64| 2f64.powf(-8.0 * (h + 1.0) / n);
    let mut of_six = [0.0; 6];
    slopes(Slopes::Alibi, 0, 0, &mut of_six).unwrap();
    // Those of four heads, then every second one of eight.
    for (h, &slope) in of_six.iter().enumerate() {
        let want = match h {
            0..=3 => geometric(h as f64, 4.0),
            h => geometric(2.0 * (h as f64 - 4.0), 8.0),
        };
        assert_eq!(slope, want as f32);
    }
    let (layer, layers) = (2.0, 5.0);
    for (family, want) in [
        (
            Slopes::Lightning2,
            geometric(1.0, 4.0) * (1.0 - layer / 4.0 + 1e-5),
        ),
        (
            Slopes::Minimax,
            geometric(1.0, 4.0) * (1.0 - layer / (4.0 + 1e-5) + 1e-5),
        ),
        (Slopes::Linear, 8.0 / 4.0 * (1.0 - layer / layers)),
    ] {
        let mut of_four = [0.0; 4];
        slopes(family, 2, 5, &mut of_four).unwrap();
        assert_eq!(of_four[1], want as f32, "{family:?}");
        fails(
            slopes(family, 5, 5, &mut of_four),
            Status::INVALID_ARGUMENT,
            "layer",
        );
    }
    fails(
        slopes(Slopes::Alibi, 0, 0, &mut []),
        Status::INVALID_ARGUMENT,
        "n_heads",
    );
}

#[test]
fn a_fused_cache_has_no_attention_alone() {
    let mut cache = open(LightningDesc {
        fused: true,
        ..kind()
    });
    let inputs = inputs(&mut Random(9), 1);
    let [k, v, q] = &inputs[0];
    let k = Tensor::f32(k, &[1, KV, DIM_K]).unwrap();
    let v = Tensor::f32(v, &[1, KV, DIM_V]).unwrap();
    let q = Tensor::f32(q, &[1, Q, DIM_K]).unwrap();
    let mut out = [0.0; Q * DIM_V];
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let into = TensorMut::f32(&mut out, &[1, Q, DIM_V]).unwrap();
    pass.put_attention(0, k, v, q, into).unwrap();
    let into = TensorMut::f32(&mut out, &[1, Q, DIM_V]).unwrap();
    let refused = pass.attention(0, q, into);
    fails(refused, Status::NOT_SUPPORTED, "FUSED");
}

/// Seven layers of linear attention, then one of softmax, as in MiniMax-01.
#[test]
fn lightning_layers_stand_beside_attention() {
    let device = Device::open("cpu", 1).unwrap();
    let lightning = Layer {
        desc: CacheDesc {
            n_layers: 0,
            ..desc()
        },
        kind: Kind::Lightning(LightningDesc::default()),
    };
    let full = Layer {
        desc: CacheDesc {
            capacity: 64,
            ..lightning.desc.clone()
        },
        kind: Kind::Causal(CausalDesc::default()),
    };
    let spelled_out = Layer {
        desc: CacheDesc {
            dtype_k: DType::F32,
            dtype_v: DType::F32,
            ..lightning.desc.clone()
        },
        ..lightning.clone()
    };
    let layers = (0..8).map(|i| match i {
        3 => &spelled_out,
        7 => &full,
        _ => &lightning,
    });
    let mut model = Cache::from_layers(&device, layers).unwrap();
    assert_eq!(model.children().len(), 2);
    fails(
        model.bind_decay(0, 7, &[0.5]),
        Status::INVALID_ARGUMENT,
        "slopes has 1 elements, not 2",
    );
    model.bind_decay(0, 7, &SLOPES).unwrap();
    let inputs = inputs(&mut Random(9), 2);
    let [k, v, q] = &inputs[0];
    let mut out = [0.0; 2 * Q * DIM_V];
    let mut pass = model.begin(&[0, 1], &[0, 0]).unwrap();
    for layer in 0..8 {
        let k = Tensor::f32(k, &[2, KV, DIM_K]).unwrap();
        let v = Tensor::f32(v, &[2, KV, DIM_V]).unwrap();
        let q = Tensor::f32(q, &[2, Q, DIM_K]).unwrap();
        let into = TensorMut::f32(&mut out, &[2, Q, DIM_V]).unwrap();
        pass.put_attention(layer, k, v, q, into).unwrap();
    }
    pass.commit().unwrap();
    model.checkpoint_take(0).unwrap();
    assert_eq!(model.can_resume(0, 2).unwrap(), 2);
    assert_eq!(model.can_resume(0, 1).unwrap(), 0); // the states have no checkpoint there
}
