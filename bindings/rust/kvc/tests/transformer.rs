//! Transformer caches in every storage type, in wrappers, built from arrays; and what is refused.
mod storages;
mod support;
use kvc::*;
use storages::{every_storage, Storage, DIM};
use support::{fails, Random};

const ROWS: usize = 2;
const KV: usize = 2;

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: 1,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        max_sequences: ROWS as i32,
        capacity: 8,
        max_batch: 4 * ROWS as i32,
        ..Default::default()
    }
}

fn open(desc: &CacheDesc, kind: TransformerDesc) -> Cache {
    let device = Device::open("cpu", 1).unwrap();
    Cache::new(&device, desc, &Kind::Transformer(kind)).unwrap()
}

fn open_as(storage: Storage) -> Cache {
    let desc = CacheDesc {
        dtype_k: storage.dtype,
        dtype_v: storage.dtype,
        block_k: storage.block,
        block_v: storage.block,
        rotate_k: storage.rotate,
        rotate_v: storage.rotate,
        ..desc()
    };
    open(&desc, TransformerDesc::default())
}

/// Rows of 3 tokens and of 1.
const LENGTHS: RowBatch<'_> = RowBatch {
    valid: Some(&[3, 1]),
    attention_mask: None,
    token_types: None,
    not_causal: false,
    postpadded: false,
    reserve: false,
};

fn fill(cache: &mut Cache, x: &[f32]) {
    let mut pass = cache.begin_rows(3, &LENGTHS).unwrap();
    let x = Tensor::f32(x, &[ROWS, 3, KV, DIM]).unwrap();
    pass.put(0, x, x).unwrap();
    pass.commit().unwrap();
}

#[test]
fn rows_are_filled_with_codes_and_with_numbers() {
    let x = Random(1).numbers(ROWS * 3 * KV * DIM);
    for storage in every_storage() {
        let mut cache = open_as(storage);
        fill(&mut cache, &x);
        let mut by_codes = open_as(storage);
        by_codes.begin_rows(3, &LENGTHS).unwrap().commit().unwrap();
        let (k, v) = cache.rows_view(0).unwrap();
        assert_eq!(k.codes.shape()[..3], [ROWS, 8, KV]);
        let (k, v) = (k.rows(0..2, 0..3), v.rows(0..2, 0..3));
        by_codes.rows_fill(0, 0, Some(k), Some(v)).unwrap();
        let mut by_numbers = open_as(storage);
        let begun = by_numbers.begin_rows(3, &LENGTHS).unwrap();
        begun.commit().unwrap();
        let x = Tensor::f32(&x, &[ROWS, 3, KV, DIM]).unwrap();
        by_numbers.rows_fill(0, 0, Some(x.into()), None).unwrap();
        by_numbers.rows_fill(0, 0, None, Some(x.into())).unwrap();
        let digest = cache.digest();
        assert_eq!(by_codes.digest(), digest, "{storage:?}");
        assert_eq!(by_numbers.digest(), digest, "{storage:?}");
    }
}

#[test]
fn a_pass_lends_copies_and_takes_whole_rows() {
    let x = Random(2).numbers(ROWS * 3 * KV * DIM);
    let dtype = DType::Q8_0;
    let mut cache = open_as(
        every_storage()
            .into_iter()
            .find(|s| s.dtype == dtype)
            .unwrap(),
    );
    fill(&mut cache, &x);
    let mut pass = cache.begin_rows(2, &RowBatch::default()).unwrap();
    let zeros = vec![0.0; ROWS * 2 * KV * DIM];
    let zeros = Tensor::f32(&zeros, &[ROWS, 2, KV, DIM]).unwrap();
    pass.put(0, zeros, zeros).unwrap();
    assert_eq!(pass.mask_shape(0).unwrap(), [ROWS, 1, 2, 8]);
    let mut mask = [false; ROWS * 2 * 8];
    let into = TensorMut::bool(&mut mask, &[ROWS, 1, 2, 8]).unwrap();
    pass.mask(0, into).unwrap();
    let seen: Vec<_> = mask
        .chunks(8)
        .map(|row| row.iter().filter(|&&sees| sees).count())
        .collect();
    assert_eq!(seen, [4, 5, 2, 3]);
    assert_eq!(pass.history(0).unwrap(), 0..8);
    fails(pass.get(0), Status::NOT_SUPPORTED, "get_codes");

    let (k, v) = pass.get_copy(0).unwrap();
    assert_eq!(k.shape, [ROWS, 8, KV, DIM]);
    assert_eq!(k, v);
    // Row 1 has its only token of before in column 0, cell 8.
    let want = &x[(3 * KV + 1) * DIM..][..DIM];
    let got = k.row(8, 1);
    assert!(got.iter().zip(want).all(|(x, y)| (x - y).abs() < 0.01));
    assert_eq!(k.row(8 + 7, 1), [0.0; DIM]); // nobody sees it

    // The tokens of before, byte for byte, as those of a pass of another cache.
    let mut other = open_as(
        every_storage()
            .into_iter()
            .find(|s| s.dtype == dtype)
            .unwrap(),
    );
    let mut into = other.begin_rows(1, &RowBatch::default()).unwrap();
    let (k, v) = pass.get_codes(0).unwrap();
    assert_eq!(k.codes.i8(8, 1).unwrap().len(), DIM);
    into.put_codes(0, k.rows(0..2, 0..1), v.rows(0..2, 0..1))
        .unwrap();
    into.commit().unwrap();
    let (lent, _) = other.rows_view(0).unwrap();
    let (k, _) = pass.rows_view(0).unwrap(); // without borrowing the pass for writing
    assert_eq!(lent.codes.bytes(8, 1), k.codes.bytes(8, 1));
    let panics = std::panic::catch_unwind(|| k.codes.bytes(2 * 8, 0).len());
    assert!(panics.is_err());
    assert!(std::panic::catch_unwind(|| k.cells(0..1)).is_err());
    assert!(std::panic::catch_unwind(|| k.rows(0..2, 7..9)).is_err());
}

#[test]
fn tokens_that_count_are_read_off_the_mask() {
    let mut cache = open(&desc(), TransformerDesc::default());
    let mask = [1, 1, 0, 0, /* */ 1, 1, 1, 0];
    let mask = Tensor::i32(&mask, &[ROWS, 4]).unwrap();
    let batch = RowBatch {
        attention_mask: Some(mask),
        postpadded: true,
        ..Default::default()
    };
    cache.fits_rows(4, &batch).unwrap();
    cache.begin_rows(4, &batch).unwrap().commit().unwrap();
    let mut index = [0; ROWS];
    cache.rows_query(0, Some(&mut index), None).unwrap();
    assert_eq!(index, [2, 3]);
    let no_mask = RowBatch {
        attention_mask: None,
        ..batch
    };
    fails(
        cache.fits_rows(4, &no_mask),
        Status::INVALID_ARGUMENT,
        "attention_mask",
    );
    let valid = RowBatch {
        valid: Some(&[1, 1]),
        ..batch
    };
    fails(
        cache.fits_rows(4, &valid),
        Status::INVALID_ARGUMENT,
        "valid",
    );
}

#[test]
fn a_reserve_pass_stores_nothing() {
    let mut cache = open(&desc(), TransformerDesc::default());
    let digest = cache.digest();
    let reserve = RowBatch {
        reserve: true,
        ..Default::default()
    };
    cache.fits_rows(4, &reserve).unwrap();
    fails(
        cache.fits_rows(5, &reserve),
        Status::INVALID_ARGUMENT,
        "q_len",
    );
    let mut pass = cache.begin_rows(4, &reserve).unwrap();
    assert_eq!(pass.stats().unwrap().state, State::RESERVE);
    assert_eq!(pass.mask_shape(0).unwrap(), [ROWS, 1, 4, 8]);
    pass.commit().unwrap();
    assert_eq!(cache.digest(), digest);
}

#[test]
fn wrapped_batches_move_as_one() {
    let device = Device::open("cpu", 1).unwrap();
    let layer = |ring| Layer {
        desc: CacheDesc {
            n_layers: 0,
            ..desc()
        },
        kind: Kind::Transformer(TransformerDesc {
            ring,
            ..Default::default()
        }),
    };
    let spelled_out = Layer {
        kind: Kind::Transformer(TransformerDesc {
            ring: true,
            reach: 7,
            value_heads: KV as i32,
            mask_dtype: DType::F32,
            ..Default::default()
        }),
        ..layer(true)
    };
    let layers = [layer(false), layer(true), spelled_out];
    let mut model = Cache::from_layers(&device, &layers).unwrap();
    assert_eq!(model.children().len(), 2);
    let x = vec![0.5; ROWS * 3 * KV * DIM];
    let mut pass = model.begin_rows(3, &LENGTHS).unwrap();
    for layer in 0..3 {
        let x = Tensor::f32(&x, &[ROWS, 3, KV, DIM]).unwrap();
        pass.put(layer, x, x).unwrap();
    }
    for child in pass.children_mut() {
        let (k, _) = child.rows_view(0).unwrap();
        assert_eq!(k.codes.f32(0, 0).unwrap()[0], 0.5);
    }
    pass.commit().unwrap();
    model.rows_set(0, None, Some(&[1, 0])).unwrap();
    let (mut index, mut starts) = ([0; ROWS], [0; ROWS]);
    model
        .rows_query(0, Some(&mut index), Some(&mut starts))
        .unwrap();
    assert_eq!((index, starts), ([3, 1], [1, 0]));
    let short = RowBatch {
        valid: Some(&[1]),
        ..Default::default()
    };
    fails(
        model.fits_rows(1, &short),
        Status::INVALID_ARGUMENT,
        "valid has 1",
    );

    let mut other = Cache::from_layers(&device, &layers).unwrap();
    other.insert(&model, 0).unwrap();
    assert_eq!(other.digest(), model.digest());
}

#[test]
fn what_the_library_cannot_check_is_checked_here() {
    let mut cache = open(&desc(), TransformerDesc::default());
    let batch = RowBatch {
        valid: Some(&[1, 1, 1]),
        ..Default::default()
    };
    fails(
        cache.begin_rows(1, &batch),
        Status::INVALID_ARGUMENT,
        "valid has 3 elements, not 2",
    );
    let batch = RowBatch {
        token_types: Some(&[1, 1, 1]),
        ..Default::default()
    };
    fails(
        cache.begin_rows(2, &batch),
        Status::INVALID_ARGUMENT,
        "token_types has 3 elements, not 4",
    );
    let (mut one, mut two) = ([0; 1], [0; 2]);
    let query = cache.rows_query(0, Some(&mut one), Some(&mut two));
    fails(
        query,
        Status::INVALID_ARGUMENT,
        "index and starts have 1 and 2",
    );
    let set = cache.rows_set(0, Some(&[0]), Some(&[0, 0]));
    fails(
        set,
        Status::INVALID_ARGUMENT,
        "index and starts have 1 and 2",
    );
}

#[test]
fn errors_of_rows_name_what_is_wrong() {
    let (invalid, missing) = (Status::INVALID_ARGUMENT, Status::NOT_SUPPORTED);
    let mut cache = open(&desc(), TransformerDesc::default());
    fails(cache.begin(&[0], &[0]), missing, "kvc_begin_rows");
    fails(cache.fits(&[0], &[0]), missing, "kvc_fits_rows");
    for q_len in [i32::MIN, -1, 0, 5, i32::MAX] {
        fails(
            cache.begin_rows(q_len, &RowBatch::default()),
            invalid,
            "q_len",
        );
    }
    let numbers = [0.0f32; 16];
    let with = |mask| RowBatch {
        attention_mask: Some(mask),
        ..Default::default()
    };
    let mask = Tensor::f32(&numbers, &[ROWS, 8]).unwrap();
    fails(
        cache.begin_rows(1, &with(mask)),
        Status::DTYPE,
        "attention_mask",
    );
    let bools = [true; 3 * ROWS * 9];
    for shape in [&[ROWS, 9][..], &[3, 8], &[ROWS, 1, 2, 8], &[16]] {
        let mask = Tensor::bool(&bools, shape).unwrap();
        fails(
            cache.begin_rows(1, &with(mask)),
            Status::SHAPE,
            "attention_mask",
        );
    }
    let mut ring = open(
        &desc(),
        TransformerDesc {
            ring: true,
            ..Default::default()
        },
    );
    let mask = Tensor::bool(&bools, &[ROWS, 8]).unwrap();
    fails(ring.begin_rows(1, &with(mask)), missing, "");
    fails(cache.insert(&ring, 0), invalid, "KVC_TRANSFORMER_RING");
    let mut other = open(&desc(), TransformerDesc::default());
    fails(cache.insert(&other, 1), invalid, "");
    let pass = other.begin_rows(1, &RowBatch::default()).unwrap();
    fails(cache.insert(&pass, 0), Status::BAD_STATE, "pass");
    drop(pass);
    fails(cache.rows_set(0, Some(&[1]), None), invalid, "index");
    fails(cache.rows_set(2, Some(&[0]), None), invalid, "row");
    fails(cache.rows_set(0, None, Some(&[9])), invalid, "starts");
    fails(cache.rows_query(-1, Some(&mut [0]), None), invalid, "row");
    fails(cache.rows_view(1), invalid, "layer");
    let x = Tensor::f32(&numbers, &[1, 1, 2, 8]).unwrap();
    fails(
        cache.rows_fill(0, 0, Some(x.into()), None),
        Status::SHAPE,
        "k",
    );
    fails(cache.rows_fill(0, 2, Some(x.into()), None), invalid, "row");
    fails(cache.bind_rope(0, 1, &RopeDesc::default()), missing, "");

    let values = TransformerDesc {
        value_heads: 1,
        ..Default::default()
    };
    let mut cache = open(&desc(), values);
    let x = vec![0.5; ROWS * KV * DIM];
    let (k, v) = ([ROWS, 1, KV, DIM], [ROWS, 1, 1, DIM]);
    let mut out = x.clone();
    let mut pass = cache.begin_rows(1, &RowBatch::default()).unwrap();
    let (k, v) = (Tensor::f32(&x, &k).unwrap(), Tensor::f32(&x, &v).unwrap());
    pass.put(0, k, v).unwrap();
    let into = TensorMut::f32(&mut out, &[ROWS, 1, KV, DIM]).unwrap();
    fails(pass.attention(0, k, into), missing, "value_heads");
}

#[test]
fn a_mask_has_the_type_that_the_descriptor_proposes() {
    for (proposed, want) in [
        (DType::default(), DType::F32),
        (DType::F16, DType::F16),
        (DType::BOOL, DType::BOOL),
    ] {
        let kind = TransformerDesc {
            mask_dtype: proposed,
            ..Default::default()
        };
        let mut cache = open(&desc(), kind);
        let mut pass = cache.begin_rows(1, &RowBatch::default()).unwrap();
        assert_eq!(pass.mask_dtype(0).unwrap(), want);
    }
}
