//! What a call brings to an operator of a caller's: enough to attend by the definition.
mod own_operator;
mod support;
use kvc::*;
use own_operator::{desc, everything, scripted, DIM, KV, Q};
use std::sync::{Arc, Mutex};
use support::{near, Random};

/// Attention by its definition, over what a call brings.
struct Definition;

impl AttentionOperator for Definition {
    fn forward_native(&self, call: &mut OperatorCall<'_>) -> Result<()> {
        let (n, columns) = (call.n_tokens, call.columns);
        let mut sees = vec![0.0; n * columns];
        call.call_mask(TensorMut::f32(&mut sees, &[n, columns])?)?;
        for token in 0..n {
            if call.sequence[token] == PADDING {
                assert_eq!(call.position[token], -1);
                continue;
            }
            let mut positions = vec![-1; columns];
            call.call_positions(call.sequence[token], &mut positions)?;
            let sees = &sees[token * columns..][..columns];
            for head in 0..call.n_q_heads {
                attend_row(call, token, head, sees, &positions)?;
            }
        }
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum()
}

fn other_type() -> Error {
    Error::new(Status::DTYPE, "the definition is for F32")
}

/// The score of one query and column.
fn score(
    call: &OperatorCall<'_>,
    token: usize,
    head: usize,
    column: usize,
    at: i32,
) -> Result<f64> {
    let cell = call.cell(token, column);
    let group = call.n_q_heads / call.n_kv_heads;
    let key = call
        .k
        .codes
        .f32(cell, head / group)
        .ok_or_else(other_type)?;
    let query = call.q.f32(token, head).ok_or_else(other_type)?;
    let mut score = f64::from(call.scale) * dot(query, key);
    if call.softcap != 0.0 {
        let cap = f64::from(call.softcap);
        score = cap * (score / cap).tanh();
    }
    let slope = call.slopes.map_or(0.0, |slopes| f64::from(slopes[head]));
    score -= slope * f64::from((call.position[token] - at).abs());
    if let Some(bias) = &call.bias {
        score += f64::from(bias.f32(token, head, column).ok_or_else(other_type)?);
    }
    Ok(score)
}

/// Which of the keys at some positions dropout keeps.
fn kept(call: &OperatorCall<'_>, token: usize, head: usize, at: &[i32]) -> Result<Vec<bool>> {
    if call.dropout_prob == 0.0 || at.is_empty() {
        return Ok(vec![true; at.len()]);
    }
    let (seed, prob, heads) = (call.dropout_seed, call.dropout_prob, call.n_q_heads);
    let mut of_heads = vec![false; heads * at.len()];
    let into = TensorMut::bool(&mut of_heads, &[heads, 1, at.len()])?;
    let query = [call.position[token]];
    dropout_mask(
        seed,
        prob,
        call.layer,
        call.sequence[token],
        &query,
        at,
        into,
    )?;
    Ok(of_heads[head * at.len()..][..at.len()].to_vec())
}

/// One query; `sees` has 0 or minus infinity for each column.
fn attend_row(
    call: &mut OperatorCall<'_>,
    token: usize,
    head: usize,
    sees: &[f32],
    positions: &[i32],
) -> Result<()> {
    let seen: Vec<usize> = (0..sees.len()).filter(|&c| sees[c] == 0.0).collect();
    let at: Vec<i32> = seen.iter().map(|&c| positions[c]).collect();
    let scores = seen
        .iter()
        .zip(&at)
        .map(|(&c, &at)| score(call, token, head, c, at));
    let scores = scores.collect::<Result<Vec<f64>>>()?;
    let nothing = f64::NEG_INFINITY;
    let most = scores.iter().copied().fold(nothing, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
    let lse = match most == nothing {
        true => nothing,
        false => most + sum.ln(),
    };
    let sink = call.sinks.map_or(nothing, |sinks| f64::from(sinks[head]));
    let most = lse.max(sink);
    let with_sink = most + ((lse - most).exp() + (sink - most).exp()).ln();
    let factor = f64::from(call.keep_factor);
    let mut weights = vec![0.0; sees.len()];
    for ((&column, kept), score) in seen.iter().zip(kept(call, token, head, &at)?).zip(scores) {
        if kept && lse != nothing {
            weights[column] = (score - with_sink).exp() * factor;
        }
    }
    let group = call.n_q_heads / call.n_kv_heads;
    let mut sums = vec![0.0; *call.out.shape().last().unwrap()];
    for &column in &seen {
        let values = call.v.codes.f32(call.cell(token, column), head / group);
        let values = values.ok_or_else(other_type)?;
        sums.iter_mut()
            .zip(values)
            .for_each(|(s, &v)| *s += weights[column] * f64::from(v));
    }
    let out = call.out.f32(token, head).ok_or_else(other_type)?;
    out.iter_mut().zip(sums).for_each(|(o, s)| *o = s as f32);
    if let Some(to) = &mut call.lse {
        to.f32(token, head).ok_or_else(other_type)?[0] = lse as f32;
    }
    if let Some(to) = &mut call.weights {
        let to = to.f32(token, head).ok_or_else(other_type)?;
        to.iter_mut()
            .zip(weights)
            .for_each(|(to, weight)| *to = weight as f32);
    }
    Ok(())
}

/// What a call returned: outputs, log-sum-exps and weights.
type Results = [Vec<f32>; 3];

fn near_each_other(a: &Results, b: &Results) {
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        let equal = |(&a, &b): (&f32, &f32)| a == b || near(a, f64::from(b));
        assert!(a.iter().zip(b).all(equal), "{a:?} {b:?}");
    }
}

/// The constants of a layer.
struct Constants {
    slopes: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    softcap: f32,
}

impl Constants {
    fn new(random: &mut Random) -> Constants {
        let slopes = random.numbers(Q).iter().map(|x| x.abs()).collect();
        Constants {
            slopes: random.one_in(2).then_some(slopes),
            sinks: random.one_in(2).then(|| random.numbers(Q)),
            softcap: [0.0, 1.5][random.range(0, 2) as usize],
        }
    }
}

/// What a call brings beside its queries.
struct Brought {
    bias: Option<Vec<f32>>,
    shows: Option<Vec<bool>>,
    dropout: Option<u64>,
    no_sinks: bool,
    results: Results,
}

impl Brought {
    fn new(random: &mut Random, n_tokens: usize, columns: usize) -> Brought {
        let shows = random.numbers(columns).iter().map(|&x| x > -0.5).collect();
        Brought {
            bias: random.one_in(2).then(|| random.numbers(columns)),
            shows: random.one_in(2).then_some(shows),
            dropout: random.one_in(2).then(|| random.draw()),
            no_sinks: random.one_in(2),
            results: [DIM, 1, columns].map(|n| vec![9.0; n_tokens * Q * n]),
        }
    }

    /// Returns the outputs, and the rest as an extra. `tokens`: one dimension, or those of rows.
    fn tensors(&mut self, tokens: &[usize], columns: usize) -> (TensorMut<'_>, AttentionExtra<'_>) {
        let [out, lse, weights] = &mut self.results;
        let of_weights = match *tokens {
            [rows, q_len] => vec![rows, Q, q_len, columns],
            _ => vec![Q, tokens[0], columns],
        };
        let bias = self
            .bias
            .as_ref()
            .map(|x| Tensor::f32(x, &[columns]).unwrap());
        let mask = self
            .shows
            .as_ref()
            .map(|x| Tensor::bool(x, &[columns]).unwrap());
        let extra = AttentionExtra {
            bias,
            mask,
            lse: Some(TensorMut::f32(lse, &[tokens, &[Q]].concat()).unwrap()),
            weights: Some(TensorMut::f32(weights, &of_weights).unwrap()),
            dropout: self.dropout,
            no_sinks: self.no_sinks,
        };
        (
            TensorMut::f32(out, &[tokens, &[Q, DIM]].concat()).unwrap(),
            extra,
        )
    }
}

/// Two passes of random tokens, over rows or a list, in which `op` attends; returns what the second
/// one did.
fn attend(device: &Device, op: &Operator, rows: bool, seed: u64) -> Results {
    let mut random = Random(seed);
    let kind = match rows {
        true => Kind::Transformer(TransformerDesc::default()),
        false => Kind::Causal(CausalDesc::default()),
    };
    let mut cache = Cache::new(device, &desc(2), &kind).unwrap();
    let constants = Constants::new(&mut random);
    let desc = AttentionDesc {
        n_q_heads: Q as i32,
        softcap: constants.softcap,
        alibi_slopes: constants.slopes.as_deref(),
        sinks: constants.sinks.as_deref(),
        ..Default::default()
    };
    cache.bind_attention(0, 1, &desc).unwrap();
    cache.bind_operator(0, 1, Modes::ALL, Some(op)).unwrap();
    let tokens = if rows { vec![2, 3] } else { vec![6] };
    let mut results = Results::default();
    for at in 0..2 {
        let batch = RowBatch {
            valid: Some(&[3, 2]),
            ..Default::default()
        };
        let positions = [0, 1, 2, 0, 1, 0].map(|p| p + 3 * at); // sequence 1 has a gap
        let mut pass = match rows {
            true => cache.begin_rows(3, &batch).unwrap(),
            false => cache.begin(&positions, &[0, 0, 0, 1, 1, PADDING]).unwrap(),
        };
        let numbers = [KV, KV, Q].map(|heads| (random.numbers(6 * heads * DIM), heads));
        let [k, v, q] = [0, 1, 2].map(|i| {
            let (numbers, heads) = &numbers[i];
            Tensor::f32(numbers, &[&tokens[..], &[*heads, DIM]].concat()).unwrap()
        });
        pass.put(0, k, v).unwrap();
        let columns = pass.history(0).unwrap().len();
        let mut brought = Brought::new(&mut random, 6, columns);
        let (out, extra) = brought.tensors(&tokens, columns);
        pass.attention_with(0, q, out, extra).unwrap();
        pass.commit().unwrap();
        results = brought.results;
    }
    results
}

/// Attention without a cache by `op`.
fn forward(op: &mut Operator, seed: u64) -> Results {
    let mut random = Random(seed);
    let constants = Constants::new(&mut random);
    let mut brought = Brought::new(&mut random, 2 * 3, 5);
    let desc = ForwardDesc {
        causal: random.one_in(2),
        reach: random.range(0, 4),
        softcap: constants.softcap,
        alibi_slopes: constants.slopes.as_deref(),
        sinks: constants.sinks.as_deref(),
        no_sinks: brought.no_sinks,
        dropout: brought.dropout,
        layer: 3,
        ..Default::default()
    };
    let numbers = [(5, KV), (5, KV), (3, Q)]
        .map(|(n, heads)| (random.numbers(2 * n * heads * DIM), [2, n, heads, DIM]));
    let [k, v, q] = [0, 1, 2].map(|i| {
        let (numbers, shape) = &numbers[i];
        Tensor::f32(numbers, shape).unwrap()
    });
    let (out, extra) = brought.tensors(&[2, 3], 5);
    let extra = AttentionExtra {
        dropout: None, // the descriptor has it, and no_sinks
        no_sinks: false,
        ..extra
    };
    op.forward_with(&desc, q, k, v, out, extra).unwrap();
    brought.results
}

#[test]
fn an_operator_of_a_callers_attends_as_the_built_in_ones() {
    let device = Device::open("cpu", 1).unwrap();
    let names = "definition,by-hand";
    device
        .operator_register(names, &everything(), Definition)
        .unwrap();
    let settings = OperatorDesc {
        dropout_prob: 0.25,
        max_rows: 2,
        max_q_len: 3,
        max_kv_len: 5,
        n_kv_heads: KV as i32,
        max_q_heads: Q as i32,
        head_dim_k: DIM as i32,
        ..Default::default()
    };
    let mut mine = Operator::new(&device, "by-hand", &settings).unwrap();
    let mut vanilla = Operator::new(&device, "vanilla", &settings).unwrap();
    for seed in 0..60 {
        near_each_other(&forward(&mut mine, seed), &forward(&mut vanilla, seed));
        for rows in [false, true] {
            let want = attend(&device, &vanilla, rows, seed);
            near_each_other(&attend(&device, &mine, rows, seed), &want);
        }
    }
}

#[test]
fn a_call_tells_all_that_is_asked() {
    let device = Device::open("cpu", 1).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = seen.clone();
    let tell = move |call: &mut OperatorCall<'_>| {
        let mask = call.mask.as_ref().unwrap();
        let bias = call.bias.as_ref().unwrap();
        let mut lines = into.lock().unwrap();
        lines.push(format!("{:?} {:?}", call.mode, call.features));
        lines.push(format!(
            "{:?} {:?} {:?}",
            mask.shape(),
            mask.strides(),
            bias.shape()
        ));
        lines.push(format!(
            "{} {} {}",
            call.block_q, call.stretches, call.scale
        ));
        lines.push(format!("{:?} {:?}", mask.bool(0, 3, 0), mask.bool(0, 0, 0)));
        lines.push(format!("{:?} {:?}", bias.bits(0, 3, 0), bias.f32(0, 3, 0)));
        let out: Vec<u16> = call.out.bits(0, 3).unwrap().to_vec();
        lines.push(format!("{} {:?}", out.len(), call.out.f32(0, 3)));
        let mut visible = [true];
        let refused = call.call_mask(TensorMut::bool(&mut visible, &[1, 1])?);
        lines.push(refused.unwrap_err().message);
        Ok(())
    };
    device
        .operator_register("mine", &everything(), scripted(tell).0)
        .unwrap();
    let settings = OperatorDesc {
        block_q: 5,
        stretches: 2,
        softmax_scale: 0.125,
        ..Default::default()
    };
    let op = Operator::new(&device, "mine", &settings).unwrap();
    let mut cache = Cache::new(&device, &desc(1), &Kind::Causal(CausalDesc::default())).unwrap();
    cache.bind_operator(0, 1, Modes::ALL, Some(&op)).unwrap();
    let (x, mut out) = ([0.5; Q * DIM], [0u16; Q * DIM]);
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let k = Tensor::f32(&x, &[1, KV, DIM]).unwrap();
    let extra = AttentionExtra {
        mask: Some(Tensor::bool(&[true, false], &[KV, 1, 1]).unwrap()),
        bias: Some(Tensor::f16(&[0x3c00u16], &[1]).unwrap()),
        ..Default::default()
    };
    let into = TensorMut::f16(&mut out, &[1, Q, DIM]).unwrap();
    let q = Tensor::f32(&x, &[1, Q, DIM]).unwrap();
    pass.put_attention_with(0, k, k, q, into, extra).unwrap();
    drop(pass);
    let lines = seen.lock().unwrap();
    let mode = "Modes(AUTOREGRESSIVE) Features(MASK | BIAS | GROUPED)";
    assert_eq!(lines[0], mode);
    assert!(
        lines[1].starts_with("[1, 2, 1] ") && lines[1].ends_with("[1, 4, 1]"),
        "{}",
        lines[1]
    );
    assert_eq!(lines[2], "5 2 0.125");
    assert_eq!(lines[3], "Some(false) Some(true)"); // each head of the mask is for two query heads
    assert_eq!(lines[4], "Some(15360) None");
    assert_eq!(lines[5], "8 None");
    assert!(
        lines[6].contains("differs from head to head"),
        "{}",
        lines[6]
    );
}
