//! Storage types: what a cache stores is what the codec makes, and what it lends can be restored.
use kvc::*;
use storages::*;

mod storages;

const KV: usize = 2;
const N: usize = 5;
const SHAPE: [usize; 3] = [N, KV, DIM];
const SCALES: [f32; 2] = [0.25, 3.0];

fn desc(storage: Storage) -> CacheDesc {
    CacheDesc {
        n_layers: 2,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        dtype_k: storage.dtype,
        dtype_v: storage.dtype,
        block_k: storage.block,
        block_v: storage.block,
        rotate_k: storage.rotate,
        rotate_v: storage.rotate,
        max_sequences: 2,
        capacity: 16,
        max_batch: 8,
        ..Default::default()
    }
}

fn create(desc: &CacheDesc) -> Cache {
    let device = Device::open("cpu", 1).unwrap();
    Cache::new(&device, desc, &Kind::Causal(CausalDesc::default())).unwrap()
}

/// With scales where the type takes them: of the keys the smaller first, of the values the larger.
fn open(storage: Storage) -> Cache {
    let mut cache = create(&desc(storage));
    if storage.is_f8() {
        let reversed = [SCALES[1], SCALES[0]];
        cache
            .bind_scales(0, 2, Some(&SCALES), Some(&reversed))
            .unwrap();
    }
    cache
}

fn quantised() -> Storage {
    Storage {
        dtype: DType::Q8_0,
        block: 0,
        rotate: false,
    }
}

fn begin(cache: &mut Cache) -> Pass<'_> {
    cache.begin(&[0, 1, 2, 3, 4], &[0; N]).unwrap()
}

fn put(pass: &mut Pass<'_>, k: &[f32], v: &[f32]) {
    for layer in 0..2 {
        let (k, v) = (Tensor::f32(k, &SHAPE), Tensor::f32(v, &SHAPE));
        pass.put(layer, k.unwrap(), v.unwrap()).unwrap();
    }
}

/// The vectors of one head.
fn of_head(values: &[f32], head: usize) -> Vec<f32> {
    let vectors = values.chunks(DIM).skip(head).step_by(KV);
    vectors.flatten().copied().collect()
}

#[test]
fn what_a_cache_lends_is_what_the_codec_makes() {
    let (k, v) = (numbers(N * KV, 1), numbers(N * KV, 2));
    for storage in every_storage() {
        let mut cache = open(storage);
        let mut pass = begin(&mut cache);
        put(&mut pass, &k, &v);
        let (k_copy, v_copy) = pass.get_copy(1).unwrap();
        assert_eq!(k_copy.shape, SHAPE);
        assert_eq!(v_copy.shape, SHAPE);
        let (k_lent, v_lent) = pass.get_codes(1).unwrap();
        for (values, lent, copy, scale) in [
            (&k, &k_lent, &k_copy, [SCALES[0], SCALES[1]]),
            (&v, &v_lent, &v_copy, [SCALES[1], SCALES[0]]),
        ] {
            assert_eq!(lent.codes.shape()[..2], SHAPE[..2]);
            for (head, scale) in scale.into_iter().enumerate() {
                let codec = storage.codec(scale);
                let encoded = Encoded::new(storage, &codec, &of_head(values, head));
                let decoded = encoded.decode(&codec);
                for cell in 0..N {
                    let at = format!("{storage:?}, head {head}, cell {cell}");
                    assert_eq!(lent_row(lent, cell, head), encoded.row(cell), "{at}");
                    let row = &decoded[cell * DIM..][..DIM];
                    assert_eq!(copy.row(cell, head), row, "{at}");
                }
            }
        }
    }
}

#[test]
fn a_lent_view_is_decoded_where_it_lies() {
    let values = numbers(N * KV, 3);
    for storage in every_storage() {
        let mut cache = create(&desc(storage));
        let mut pass = begin(&mut cache);
        put(&mut pass, &values, &values);
        let want = pass.get_copy(0).unwrap().0;
        let mut decoded = [0.0; 2 * KV * DIM];
        let into = TensorMut::f32(&mut decoded, &[2, KV, DIM]).unwrap();
        let (k, _) = pass.get_codes(0).unwrap();
        storage.codec(0.0).decode(k.cells(1..3), into).unwrap();
        assert_eq!(decoded, want.data[KV * DIM..3 * KV * DIM], "{storage:?}");
    }
}

#[test]
fn stored_tokens_move_to_another_cache_byte_for_byte() {
    let (k, v) = (numbers(N * KV, 4), numbers(N * KV, 5));
    for storage in every_storage() {
        let (mut from, mut to) = (open(storage), open(storage));
        let mut pass = begin(&mut from);
        put(&mut pass, &k, &v);
        let mut restored = begin(&mut to);
        for layer in 0..2 {
            let (k, v) = pass.get_codes(layer).unwrap();
            restored
                .put_codes(layer, k.cells(0..N), v.cells(0..N))
                .unwrap();
            let copies = (restored.get_copy(layer), pass.get_copy(layer));
            assert_eq!(copies.0, copies.1, "{storage:?}");
        }
        pass.commit().unwrap();
        restored.commit().unwrap();
        assert_eq!(from.digest(), to.digest(), "{storage:?}");
        to.check().unwrap();
    }
}

/// K and V in one row: other strides, the same bytes.
#[test]
fn interleaved_rows_are_lent_and_restored() {
    let (k, v) = (numbers(N * KV, 6), numbers(N * KV, 7));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let apart = desc(Storage {
            dtype,
            ..quantised()
        });
        let side_by_side = CacheDesc {
            interleaved: true,
            ..apart.clone()
        };
        let (mut from, mut to) = (create(&side_by_side), create(&apart));
        let mut pass = begin(&mut from);
        put(&mut pass, &k, &v);
        let mut restored = begin(&mut to);
        for layer in 0..2 {
            let (k, v) = pass.get_codes(layer).unwrap();
            let row = k.codes.bytes(2, 1);
            assert_eq!(v.codes.bytes(2, 1).as_ptr(), row.as_ptr_range().end);
            restored
                .put_codes(layer, k.cells(0..N), v.cells(0..N))
                .unwrap();
        }
        pass.commit().unwrap();
        restored.commit().unwrap();
        assert_eq!(from.digest(), to.digest(), "{dtype:?}");
    }
}

/// Bytes written down by hand, so that codec and cache cannot be wrong alike.
#[test]
fn known_vectors_have_known_codes() {
    let encode = |dtype, scale, first: &[f32]| {
        let mut vector = [0.0; DIM];
        vector[..first.len()].copy_from_slice(first);
        let storage = Storage {
            dtype,
            ..quantised()
        };
        let codec = storage.codec(scale);
        let (codes, scales) = Encoded::new(storage, &codec, &vector).row(0);
        (codes[..4].to_vec(), scales.get(..4).map(<[u8]>::to_vec))
    };
    // f16 1.0 is 3c00, and the next block of 32 is zeros.
    let (codes, scales) = encode(DType::Q8_0, 0.0, &[127.0, -64.4, 0.5, -0.5]);
    assert_eq!(
        (codes, scales),
        (vec![127, 192, 1, 255], Some(vec![0, 0x3c, 0, 0]))
    );
    // Value i is the low nibble, i + 16 the high one; 8 is zero.
    let (codes, scales) = encode(DType::Q4_0, 0.0, &[-8.0, 7.0, 1.0, -1.0]);
    let want = vec![0x80, 0x8f, 0x89, 0x87];
    assert_eq!((codes, scales), (want, Some(vec![0, 0x3c, 0, 0])));
    // f32 1.0 is 3f800000; halves go to even.
    let (codes, scales) = encode(DType::INT8, 0.0, &[127.0, 0.5, 1.5, -2.5]);
    assert_eq!(
        (codes, scales),
        (vec![127, 0, 2, 254], Some(vec![0, 0, 0x80, 0x3f]))
    );
    // Value 2i is the high nibble; the table goes from -1 (0) over 0 (7) to 1 (15).
    let (codes, scales) = encode(DType::NF4, 0.0, &[2.0, -2.0, 0.0, 2.0]);
    let want = vec![0xf0, 0x7f, 0x77, 0x77];
    assert_eq!((codes, scales), (want, Some(vec![0, 0, 0, 0x40])));
    // 1 is 38, what is too large 448 (7e), infinity NaN (7f).
    let large = [2.0, -1.0, 1e9, f32::INFINITY];
    assert_eq!(
        encode(DType::F8_E4M3, 2.0, &large),
        (vec![0x38, 0xb0, 0x7e, 0x7f], None)
    );
    assert_eq!(
        encode(DType::F8_E5M2, 2.0, &large),
        (vec![0x3c, 0xb8, 0x7b, 0x7c], None)
    );
}
