//! The tokens of a pass: padding and flags, and the calls that return what others would.
use kvc::*;

const HEADS: usize = 2;
const DIM: usize = 8;
const ROW: usize = HEADS * DIM;

fn open(kind: CausalDesc) -> Cache {
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: HEADS as i32,
        head_dim_k: DIM as i32,
        max_sequences: 2,
        capacity: 16,
        max_batch: 8,
        ..Default::default()
    };
    let device = Device::open("cpu", 2).unwrap();
    Cache::new(&device, &desc, &Kind::Causal(kind)).unwrap()
}

/// Keys, values or queries. A padding token has NaN.
fn rows(kind: usize, positions: &[i32], sequences: &[i32]) -> Vec<f32> {
    let value = |position: i32, sequence: i32, i: usize| match sequence {
        PADDING => f32::NAN,
        _ => ((position * 31 + sequence * 17) as f32 + (i * 7 + kind * 11) as f32).sin(),
    };
    let tokens = positions.iter().zip(sequences);
    tokens
        .flat_map(|(&position, &sequence)| (0..ROW).map(move |i| value(position, sequence, i)))
        .collect()
}

/// What one pass returns, a row for each token: the output, the logs of sums, the mask.
#[derive(Debug, PartialEq)]
struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
    sees: Vec<bool>,
}

fn attend(pass: &mut Pass<'_>, positions: &[i32], sequences: &[i32]) -> Result<Results> {
    let n = positions.len();
    let shape = [n, HEADS, DIM];
    let [k, v, q] = [0, 1, 2].map(|kind| rows(kind, positions, sequences));
    let (mut out, mut lse) = (vec![9.0; q.len()], vec![9.0; n * HEADS]);
    let extra = AttentionExtra {
        lse: Some(TensorMut::f32(&mut lse, &[n, HEADS])?),
        ..Default::default()
    };
    pass.put_attention_with(
        0,
        Tensor::f32(&k, &shape)?,
        Tensor::f32(&v, &shape)?,
        Tensor::f32(&q, &shape)?,
        TensorMut::f32(&mut out, &shape)?,
        extra,
    )?;
    let mask = pass.mask_shape(0)?;
    let mut sees = vec![true; mask[0] * mask[1]];
    pass.mask(0, TensorMut::bool(&mut sees, &mask)?)?;
    Ok(Results { out, lse, sees })
}

#[test]
fn padding_changes_no_bit_of_the_other_rows() {
    let (positions, sequences) = ([0, 99, 1, 0, -5], [0, PADDING, 0, 1, PADDING]);
    let (mut padded, mut plain) = (open(CausalDesc::default()), open(CausalDesc::default()));
    padded.fits(&positions, &sequences).unwrap();
    let mut pass = padded.begin(&positions, &sequences).unwrap();
    let got = attend(&mut pass, &positions, &sequences).unwrap();
    pass.commit().unwrap();
    let mut pass = plain.begin(&[0, 1, 0], &[0, 0, 1]).unwrap();
    let want = attend(&mut pass, &[0, 1, 0], &[0, 0, 1]).unwrap();
    pass.commit().unwrap();

    let columns = want.sees.len() / 3;
    for (row, token) in [0, 2, 3].into_iter().enumerate() {
        assert_eq!(got.out[token * ROW..][..ROW], want.out[row * ROW..][..ROW]);
        assert_eq!(
            got.lse[token * HEADS..][..HEADS],
            want.lse[row * HEADS..][..HEADS]
        );
        let (got, want) = (&got.sees[token * columns..], &want.sees[row * columns..]);
        assert_eq!(got[..columns], want[..columns]);
    }
    for token in [1, 4] {
        assert_eq!(got.out[token * ROW..][..ROW], [0.0; ROW]);
        assert_eq!(
            got.lse[token * HEADS..][..HEADS],
            [f32::NEG_INFINITY; HEADS]
        );
        assert!(got.sees[token * columns..][..columns]
            .iter()
            .all(|&sees| !sees));
    }
    assert_eq!(padded.digest(), plain.digest());
    assert_eq!(padded.stats(), plain.stats());

    let mut pass = padded.begin(&[0], &[PADDING]).unwrap();
    assert!(pass.history(0).unwrap().is_empty());
    pass.commit().unwrap(); // a pass of padding alone needs no put
    assert_eq!(padded.digest(), plain.digest());
}

#[test]
fn a_flag_opens_a_pass_with_an_except_set() {
    let (positions, sequences) = ([0, 1, 2], [0, 0, 0]);
    let flags = [TOKEN_SEES_LATER, 0, 0];
    let (mut flagged, mut set) = (open(CausalDesc::default()), open(CausalDesc::default()));
    flagged.fits_with(&positions, &sequences, &flags).unwrap();
    let mut pass = flagged.begin_with(&positions, &sequences, &flags).unwrap();
    let got = attend(&mut pass, &positions, &sequences).unwrap();
    let columns = got.sees.len() / 3;
    let seen = |row: usize| {
        got.sees[row * columns..][..columns]
            .iter()
            .filter(|&&sees| sees)
    };
    assert_eq!([0, 1, 2].map(|row| seen(row).count()), [3, 2, 3]);
    let mut pass = set.begin(&positions, &sequences).unwrap();
    pass.set_causal(&[0]).unwrap();
    assert_eq!(attend(&mut pass, &positions, &sequences).unwrap(), got);
}

#[test]
fn tokens_of_a_type_see_each_other() {
    let (positions, sequences) = ([0, 1, 2, 3], [0, 0, 0, 0]);
    let image = token_type(3);
    let mut cache = open(CausalDesc::default());
    let mut pass = cache
        .begin_with(&positions, &sequences, &[0, image, image, 0])
        .unwrap();
    let got = attend(&mut pass, &positions, &sequences).unwrap();
    let columns = got.sees.len() / 4;
    let seen = |row: usize| {
        got.sees[row * columns..][..columns]
            .iter()
            .filter(|&&sees| sees)
    };
    assert_eq!([0, 1, 2, 3].map(|row| seen(row).count()), [1, 3, 3, 4]);
    pass.abort().unwrap();
    let error = cache
        .begin_with(&positions, &sequences, &[image, 0, image, 0])
        .err()
        .unwrap();
    assert_eq!(error.status, Status::INVALID_ARGUMENT);
    assert!(error.message.contains("type 3"), "{error}");
}

#[test]
fn fits_returns_what_begin_returns() {
    let mut cache = open(CausalDesc::default());
    type Case<'a> = (&'a [i32], &'a [i32], &'a [u32], Status);
    let cases: [Case<'_>; 4] = [
        (
            &[0],
            &[PADDING],
            &[TOKEN_SEES_LATER],
            Status::INVALID_ARGUMENT,
        ),
        (&[0], &[0], &[1 << 15], Status::INVALID_ARGUMENT),
        (&[0], &[-2], &[0], Status::INVALID_ARGUMENT),
        (&[0], &[PADDING], &[token_type(1)], Status::INVALID_ARGUMENT),
    ];
    for (positions, sequences, flags, status) in cases {
        let fits = cache.fits_with(positions, sequences, flags).unwrap_err();
        let begin = cache.begin_with(positions, sequences, flags).err().unwrap();
        assert_eq!((fits.status, &fits), (status, &begin));
    }
}

#[test]
fn can_remove_returns_what_remove_returns() {
    let mut cache = open(CausalDesc {
        reach: 2,
        ..Default::default()
    });
    for first in [0, 4] {
        let positions = [first, first + 1, first + 2, first + 3];
        let mut pass = cache.begin(&positions, &[0; 4]).unwrap();
        attend(&mut pass, &positions, &[0; 4]).unwrap();
        pass.commit().unwrap();
    }
    let before = cache.digest();
    let refusals = [
        (-1, 3, Status::INVALID_ARGUMENT),
        (3, 2, Status::INVALID_ARGUMENT),
        (2, SEQ_END, Status::WINDOW_LOST), // what a token at 2 would need has slid out
        (6, 7, Status::NOT_SUPPORTED),     // nothing says how keys rotate
    ];
    for (begin, end, status) in refusals {
        let question = cache.can_remove(0, begin, end).unwrap_err();
        assert_eq!(
            (question.status, cache.remove(0, begin, end)),
            (status, Err(question.clone()))
        );
    }
    cache.can_remove(0, 7, SEQ_END).unwrap();
    assert_eq!(cache.digest(), before);
    cache.remove(0, 7, SEQ_END).unwrap();
    assert_eq!(cache.sequence(0).unwrap().next, 7);
}
