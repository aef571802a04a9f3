//! The extra tensors of one attention call: a bias, a mask, weights, logs of sums.
use kvc::*;

const HEADS: usize = 2;
const DIM: usize = 8;
const ROW: usize = HEADS * DIM;

/// A tree behind a prompt of three tokens: token 3, its children 4 and 5, and 6, a child of 4.
const PARENT: [usize; 7] = [0, 0, 1, 2, 3, 3, 4];

fn is_before(ancestor: usize, mut token: usize) -> bool {
    while token > ancestor {
        token = PARENT[token];
    }
    token == ancestor
}

fn open() -> Cache {
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: HEADS as i32,
        head_dim_k: DIM as i32,
        max_sequences: 2,
        capacity: 16,
        max_batch: 8,
        ..Default::default()
    };
    let device = Device::open("cpu", 1).unwrap();
    Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default())).unwrap()
}

/// Keys, values or queries of tokens.
fn rows(kind: usize, tokens: &[usize]) -> Vec<f32> {
    let value = |token: usize, i: usize| ((token * 31 + i * 7 + kind * 11) as f32).sin();
    tokens
        .iter()
        .flat_map(|&token| (0..ROW).map(move |i| value(token, i)))
        .collect()
}

fn begin<'a>(cache: &'a mut Cache, sequence: i32, start: i32, tokens: &[usize]) -> Pass<'a> {
    let n = tokens.len();
    let positions: Vec<i32> = (start..start + n as i32).collect();
    let mut pass = cache.begin(&positions, &vec![sequence; n]).unwrap();
    let (k, v, shape) = (rows(0, tokens), rows(1, tokens), [n, HEADS, DIM]);
    pass.put(
        0,
        Tensor::f32(&k, &shape).unwrap(),
        Tensor::f32(&v, &shape).unwrap(),
    )
    .unwrap();
    pass
}

fn attend(pass: &mut Pass<'_>, tokens: &[usize], extra: AttentionExtra<'_>) -> Result<Vec<f32>> {
    let (q, shape) = (rows(2, tokens), [tokens.len(), HEADS, DIM]);
    let mut out = vec![0.0; q.len()];
    pass.attention_with(
        0,
        Tensor::f32(&q, &shape)?,
        TensorMut::f32(&mut out, &shape)?,
        extra,
    )?;
    Ok(out)
}

/// A whole pass; the result of its last token.
fn branch(cache: &mut Cache, start: i32, tokens: &[usize]) -> Vec<f32> {
    let mut pass = begin(cache, 1, start, tokens);
    let out = attend(&mut pass, tokens, AttentionExtra::default()).unwrap();
    pass.commit().unwrap();
    out[out.len() - ROW..].to_vec()
}

#[test]
fn a_tree_in_one_pass_is_its_branches() {
    let mut cache = open();
    begin(&mut cache, 0, 0, &[0, 1, 2]).commit().unwrap();
    cache.copy_prefix(0, 1, 3).unwrap();
    let (root, left, below) = (
        branch(&mut cache, 3, &[3]),
        branch(&mut cache, 4, &[4]),
        branch(&mut cache, 5, &[6]),
    );
    cache.remove(1, 4, SEQ_END).unwrap();
    let right = branch(&mut cache, 4, &[5]);
    let want = [root, left, right, below].concat();

    let tree = [3, 4, 5, 6];
    let mut pass = begin(&mut cache, 0, 3, &tree);
    let history = pass.history(0).unwrap();
    let columns = history.len();
    let mut mask = vec![false; tree.len() * columns];
    for (row, &token) in tree.iter().enumerate() {
        for run in pass.runs(0, 0).unwrap() {
            for i in 0..run.length {
                let column = (run.cell + i - history.start) as usize;
                mask[row * columns + column] = is_before((run.position + i) as usize, token);
            }
        }
    }
    let mut weights = vec![9.0; HEADS * mask.len()];
    let mut lse = vec![9.0; tree.len() * HEADS];
    let extra = AttentionExtra {
        mask: Some(Tensor::bool(&mask, &[tree.len(), columns]).unwrap()),
        lse: Some(TensorMut::f32(&mut lse, &[tree.len(), HEADS]).unwrap()),
        weights: Some(TensorMut::f32(&mut weights, &[HEADS, tree.len(), columns]).unwrap()),
        ..Default::default()
    };
    let out = attend(&mut pass, &tree, extra).unwrap();
    for (got, want) in out.iter().zip(&want) {
        assert!((got - want).abs() < 1e-6, "{got} is not {want}");
    }
    for (row, weights) in weights.chunks(columns).enumerate() {
        let seen = &mask[row % tree.len() * columns..][..columns];
        assert!(weights
            .iter()
            .zip(seen)
            .all(|(&weight, &seen)| (weight > 0.0) == seen));
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
    assert!(lse.iter().all(|&lse| lse < 9.0));
}

#[test]
fn a_bias_of_minus_infinity_is_a_mask() {
    let (mut cache, tokens) = (open(), [0, 1, 2]);
    let mut pass = begin(&mut cache, 0, 0, &tokens);
    let columns = pass.history(0).unwrap().len();
    let mask: Vec<u8> = (0..columns)
        .map(|c| if c % 2 == 0 { 255 } else { 0 })
        .collect();
    let bias: Vec<f32> = mask
        .iter()
        .map(|&sees| if sees == 0 { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    let mut with = |bias, mask| {
        let extra = AttentionExtra {
            bias,
            mask,
            ..Default::default()
        };
        attend(&mut pass, &tokens, extra)
    };
    let masked = with(None, Some(Tensor::bool_bytes(&mask, &[columns]).unwrap())).unwrap();
    let biased = with(Some(Tensor::f32(&bias, &[columns]).unwrap()), None).unwrap();
    assert_eq!(masked, biased);
    assert_ne!(masked, with(None, None).unwrap());
    let nothing = vec![false; columns];
    let hidden = with(None, Some(Tensor::bool(&nothing, &[columns]).unwrap())).unwrap();
    assert!(hidden.iter().all(|&value| value == 0.0));

    let wrong = with(Some(Tensor::bool(&nothing, &[columns]).unwrap()), None);
    assert_eq!(wrong.unwrap_err().status, Status::DTYPE);
    let wrong = with(
        None,
        Some(Tensor::bool(&nothing, &[1, 1, 1, columns]).unwrap()),
    );
    assert_eq!(wrong.unwrap_err().status, Status::SHAPE);
}

#[test]
fn put_attention_takes_the_same_extra() {
    let (mut cache, tokens, shape) = (open(), [0, 1, 2], [3, HEADS, DIM]);
    let (k, v, q) = (rows(0, &tokens), rows(1, &tokens), rows(2, &tokens));
    let mut pass = cache.begin(&[0, 1, 2], &[0, 0, 0]).unwrap();
    let columns = pass.history(0).unwrap().len();
    let bias: Vec<f32> = (0..3 * columns).map(|i| i as f32 / 8.0).collect();
    let mask: Vec<bool> = (0..columns).map(|column| column != 1).collect();
    let mut call = |puts: bool| {
        let mut out = vec![9.0; q.len()];
        let (mut lse, mut weights) = (vec![9.0; 3 * HEADS], vec![9.0; HEADS * 3 * columns]);
        let extra = AttentionExtra {
            bias: Some(Tensor::f32(&bias, &[3, columns])?),
            mask: Some(Tensor::bool(&mask, &[columns])?),
            weights: Some(TensorMut::f32(&mut weights, &[HEADS, 3, columns])?),
            lse: Some(TensorMut::f32(&mut lse, &[3, HEADS])?),
            ..Default::default()
        };
        let (q, into) = (Tensor::f32(&q, &shape)?, TensorMut::f32(&mut out, &shape)?);
        if puts {
            let (k, v) = (Tensor::f32(&k, &shape)?, Tensor::f32(&v, &shape)?);
            pass.put_attention_with(0, k, v, q, into, extra)?;
        } else {
            pass.attention_with(0, q, into, extra)?;
        }
        Ok((out, lse, weights))
    };
    let early: Result<_> = call(false);
    assert_eq!(early.unwrap_err().status, Status::BAD_STATE); // the layer is not put yet
    let (out, lse, weights) = call(true).unwrap();
    assert_eq!(call(false).unwrap(), (out, lse.clone(), weights.clone()));
    // The first token sees itself alone, so the logarithm is its score. Its bias is 0.
    let product: f32 = q.iter().zip(&k).take(DIM).map(|(q, k)| q * k).sum();
    assert!(
        (lse[0] - product / (DIM as f32).sqrt()).abs() < 1e-5,
        "{}",
        lse[0]
    );
    for row in weights.chunks(columns) {
        assert!(row[0] > 0.0 && row[1] == 0.0, "{row:?}"); // the mask hides column 1
    }
}

#[test]
fn a_mask_is_written_as_booleans_or_as_numbers() {
    let (mut cache, tokens) = (open(), [0, 1, 2]);
    let mut pass = begin(&mut cache, 0, 0, &tokens);
    let shape = pass.mask_shape(0).unwrap();
    let n = shape[0] * shape[1];
    let (mut numbers, mut sees) = (vec![9.0; n], vec![false; n]);
    let into = TensorMut::f32(&mut numbers, &shape).unwrap();
    pass.mask(0, into).unwrap();
    let into = TensorMut::bool(&mut sees, &shape).unwrap();
    pass.mask(0, into).unwrap();
    for (number, &sees) in numbers.iter().zip(&sees) {
        assert_eq!(*number, if sees { 0.0 } else { f32::NEG_INFINITY });
    }
    assert_eq!(sees.iter().filter(|&&sees| sees).count(), 1 + 2 + 3);

    let into = TensorMut::bool(&mut sees, &shape).unwrap();
    assert_eq!(
        pass.mask(1, into).unwrap_err().status,
        Status::INVALID_ARGUMENT
    );
    assert_eq!(
        pass.mask_shape(1).unwrap_err().status,
        Status::INVALID_ARGUMENT
    );
    assert_eq!(
        pass.history(1).unwrap_err().status,
        Status::INVALID_ARGUMENT
    );
    assert_eq!(
        pass.runs(1, 0).unwrap_err().status,
        Status::INVALID_ARGUMENT
    );
    // kvc writes numbers nowhere but into tensors of numbers.
    let (q, mut out) = (rows(2, &tokens), vec![true; 3 * ROW]);
    let q = Tensor::f32(&q, &[3, HEADS, DIM]).unwrap();
    let out = TensorMut::bool(&mut out, &[3, HEADS, DIM]).unwrap();
    assert_eq!(pass.attention(0, q, out).unwrap_err().status, Status::DTYPE);
}
