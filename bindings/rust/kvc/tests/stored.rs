//! Reading what is stored as codes, the scales of f8, and what is refused.
use kvc::*;
use storages::*;

mod storages;

const KV: usize = 2;

fn desc(dtype: DType) -> CacheDesc {
    CacheDesc {
        n_layers: 2,
        n_kv_heads: KV as i32,
        head_dim_k: DIM as i32,
        dtype_k: dtype,
        dtype_v: dtype,
        max_sequences: 2,
        capacity: 16,
        max_batch: 8,
        ..Default::default()
    }
}

fn device() -> Device {
    Device::open("cpu", 1).unwrap()
}

fn create(desc: &CacheDesc) -> Cache {
    Cache::new(&device(), desc, &Kind::Causal(CausalDesc::default())).unwrap()
}

fn put(layers: &mut Layers<'_>, layer: i32, x: &[f32]) {
    let x = Tensor::f32(x, &[x.len() / KV / DIM, KV, DIM]).unwrap();
    layers.put(layer, x, x).unwrap();
}

#[test]
fn codes_are_lent_and_numbers_are_not() {
    let mut cache = create(&CacheDesc {
        dtype_k: DType::F16,
        ..desc(DType::Q4_0)
    });
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    fails(pass.get_codes(0), Status::BAD_STATE, "");
    fails(pass.get_copy(0), Status::BAD_STATE, "");
    put(&mut pass, 0, &numbers(KV, 1));
    fails(pass.get(0), Status::NOT_SUPPORTED, "get_codes");
    let (k, v) = pass.get_codes(0).unwrap();
    assert_eq!(
        (k.codes.dtype(), v.codes.dtype()),
        (DType::F16, DType::U8) // of numbers, the numbers
    );
    assert_eq!(v.codes.shape(), [1, KV, DIM / 2]);
    assert!(v.codes.i8(0, 0).is_none() && v.codes.f32(0, 0).is_none());
    assert_eq!(v.codes.u8(0, 1).unwrap(), v.codes.bytes(0, 1));
    assert!(k.scales.is_none());
    let scales = v.scales.unwrap();
    assert_eq!(
        (scales.dtype(), scales.shape()),
        (DType::F16, &[1, KV, DIM / 32][..])
    );
    assert_eq!(scales.bytes(0, 1).len(), 2 * DIM / 32);
}

#[test]
fn the_side_that_stores_numbers_is_lent_alone() {
    let x = numbers(KV, 1);
    for (of_k, of_v) in [(DType::F32, DType::Q8_0), (DType::NF4, DType::F32)] {
        let mut cache = create(&CacheDesc {
            dtype_k: of_k,
            ..desc(of_v)
        });
        let mut pass = cache.begin(&[0], &[0]).unwrap();
        put(&mut pass, 0, &x);
        let lends_k = of_k == DType::F32;
        let refused = if lends_k {
            pass.get_values(0)
        } else {
            pass.get_keys(0)
        };
        fails(refused, Status::NOT_SUPPORTED, "get_codes");
        let lent = if lends_k {
            pass.get_keys(0)
        } else {
            pass.get_values(0)
        };
        assert_eq!(lent.unwrap().f32(0, 1).unwrap(), &x[DIM..]);
    }
}

#[test]
fn views_panic_outside_their_shape() {
    let mut cache = create(&desc(DType::Q8_0));
    let mut pass = cache.begin(&[0, 1], &[0, 0]).unwrap();
    put(&mut pass, 0, &numbers(2 * KV, 1));
    let copy = pass.get_copy(0).unwrap().0;
    let (k, _) = pass.get_codes(0).unwrap();
    let cells = |start, end| k.cells(start..end).scales.is_some();
    assert!(cells(2, 2)); // none of them
    let outside: [&dyn Fn() -> bool; 6] = [
        &|| cells(1, 3),
        &|| cells(2, 1),
        &|| k.codes.bytes(2, 0).is_empty(),
        &|| k.codes.i8(0, KV).is_none(),
        &|| copy.row(2, 0).is_empty(),
        &|| copy.row(0, KV).is_empty(),
    ];
    for (i, call) in outside.iter().enumerate() {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        assert!(panicked.is_err(), "{i}");
    }
}

#[test]
fn copies_are_taken_in_types_of_the_caller() {
    let mut cache = create(&desc(DType::INT8));
    let mut pass = cache.begin(&[0, 1], &[0, 1]).unwrap();
    put(&mut pass, 1, &numbers(2 * KV, 2));
    let (k, v) = pass.get_copy(1).unwrap();
    assert_eq!(k, v);
    let shapes = pass.get_copy_shapes(1).unwrap();
    assert_eq!(shapes, (vec![2, KV, DIM], vec![2, KV, DIM]));

    let mut bits = [0u16; 2 * KV * DIM];
    let into = TensorMut::bf16(&mut bits, &shapes.0).unwrap();
    pass.get_copy_into(1, None, Some(into)).unwrap(); // V alone
    for (&bits, &want) in bits.iter().zip(&v.data) {
        let got = f32::from_bits(u32::from(bits) << 16);
        assert!((got - want).abs() <= want.abs() / 256.0, "{got} {want}");
    }
    let into = TensorMut::bf16(&mut bits, &[1, KV, DIM]).unwrap();
    fails(pass.get_copy_into(1, Some(into), None), Status::SHAPE, "");
    let mut codes = [0i8; 2 * KV * DIM];
    let into = TensorMut::i8(&mut codes, &shapes.0).unwrap();
    fails(pass.get_copy_into(1, Some(into), None), Status::DTYPE, "");
    assert!(pass.get_copy_into(1, None, None).is_ok()); // nothing wanted
}

/// After positions moved, a copied key is turned by what it owes; its code is as it was.
#[test]
fn keys_that_owe_a_turn_are_copied_turned_and_lent_as_they_are() {
    let mut cache = create(&CacheDesc {
        rotate_k: true,
        ..desc(DType::Q8_0)
    });
    cache.bind_rope(0, 2, &RopeDesc::default()).unwrap();
    let values = numbers(6 * KV, 3);
    let mut pass = cache.begin(&[0, 1, 2, 3, 4, 5], &[0; 6]).unwrap();
    put(&mut pass, 0, &values);
    put(&mut pass, 1, &values);
    let before = pass.get_copy(0).unwrap().0;
    let code = lent_row(&pass.get_codes(0).unwrap().0, 5, 1);
    pass.commit().unwrap();
    cache.remove(0, 1, 3).unwrap();
    let mut gathered = [0.0; 4 * KV * DIM];
    let into = TensorMut::f32(&mut gathered, &[4, KV, DIM]).unwrap();
    cache.gather(0, 0, Some(into), None).unwrap();

    let mut pass = cache.begin(&[4], &[0]).unwrap();
    put(&mut pass, 0, &values[..KV * DIM]);
    let cell = 5 - pass.history(0).unwrap().start as usize;
    let after = pass.get_copy(0).unwrap().0;
    assert_eq!(after.row(cell, 1), &gathered[(3 * KV + 1) * DIM..]); // the fourth of four
    assert_ne!(after.row(cell, 1), before.row(5, 1));
    assert_eq!(lent_row(&pass.get_codes(0).unwrap().0, cell, 1), code);
}

/// A copy, the mask, and three loops compute what attention computes on the codes.
#[test]
fn textbook_attention_over_a_copy_agrees() {
    const ONE: [usize; 3] = [6, 1, DIM];
    for storage in every_storage() {
        let mut cache = create(&CacheDesc {
            n_kv_heads: 1,
            block_k: storage.block,
            block_v: storage.block,
            rotate_k: storage.rotate,
            rotate_v: storage.rotate,
            ..desc(storage.dtype)
        });
        let (k, v, q) = (numbers(6, 1), numbers(6, 2), numbers(6, 3));
        let [k, v, q_tensor] = [&k, &v, &q].map(|x| Tensor::f32(x, &ONE).unwrap());
        let mut out = [0.0; 6 * DIM];
        let mut pass = cache
            .begin(&[0, 1, 2, 0, 1, 2], &[0, 0, 0, 1, 1, 1])
            .unwrap();
        let into = TensorMut::f32(&mut out, &ONE).unwrap();
        pass.put_attention(0, k, v, q_tensor, into).unwrap();
        let (k, v) = pass.get_copy(0).unwrap();
        let n = k.shape[0];
        let mut mask = vec![false; 6 * n];
        pass.mask(0, TensorMut::bool(&mut mask, &[6, n]).unwrap())
            .unwrap();
        for (token, q) in q.chunks(DIM).enumerate() {
            let seen: Vec<_> = (0..n).filter(|cell| mask[token * n + cell]).collect();
            let dot = |key: &[f32]| key.iter().zip(q).map(|(&x, &y)| f64::from(x * y)).sum();
            let scale = (DIM as f64).sqrt();
            let scores: Vec<f64> = seen.iter().map(|&c| dot(k.row(c, 0))).collect();
            let weights: Vec<f64> = scores.iter().map(|x: &f64| (x / scale).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for dim in 0..DIM {
                let parts = seen.iter().zip(&weights);
                let all: f64 = parts.map(|(&c, w)| w * f64::from(v.row(c, 0)[dim])).sum();
                let (want, got) = (all / sum, f64::from(out[token * DIM + dim]));
                assert!((want - got).abs() < 1e-4, "{storage:?}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn scales_are_bound_to_empty_caches_of_f8_one_for_each_head() {
    let mut cache = create(&desc(DType::F8_E5M2));
    let (short, status) = ([1.0f32; KV - 1], Status::INVALID_ARGUMENT);
    fails(
        cache.bind_scales(0, 2, Some(&short), None),
        status,
        "k_scales has 1 elements, not 2, one for each KV head",
    );
    let long = [1.0f32; KV + 1];
    fails(
        cache.bind_scales(0, 2, None, Some(&long)),
        status,
        "v_scales",
    );
    let two = [2.0f32, 4.0];
    fails(cache.bind_scales(0, 2, Some(&[0.0, 1.0]), None), status, "");
    fails(cache.bind_scales(0, 3, Some(&two), None), status, "");
    cache.bind_scales(0, 1, Some(&two), None).unwrap(); // the keys of layer 0 alone
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let ones = [1.0; KV * DIM];
    put(&mut pass, 0, &ones);
    put(&mut pass, 1, &ones);
    let first = |view: &View<'_>, head| view.u8(0, head).unwrap()[0];
    let (k, v) = pass.get_codes(0).unwrap();
    let (half, quarter, one) = (0x38, 0x34, 0x3c); // of e5m2
    assert_eq!((first(&k.codes, 0), first(&k.codes, 1)), (half, quarter));
    assert_eq!(first(&v.codes, 1), one);
    let (k, _) = pass.get_codes(1).unwrap();
    assert_eq!(first(&k.codes, 1), one);
    pass.commit().unwrap();
    let late = cache.bind_scales(0, 1, Some(&two), None);
    fails(late, Status::BAD_STATE, "");
    let mut other = create(&desc(DType::Q8_0));
    let other = other.bind_scales(0, 1, Some(&two), None);
    fails(other, Status::NOT_SUPPORTED, "");
}

#[test]
fn codes_of_another_storage_are_refused() {
    let mut cache = create(&desc(DType::Q8_0));
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let (codes, bytes) = ([1i8; KV * DIM], [1u8; KV * DIM]);
    let scales = [0x3c00u16; KV * DIM / 32];
    let right = Codes {
        codes: Tensor::i8(&codes, &[1, KV, DIM]).unwrap(),
        scales: Some(Tensor::f16(&scales, &[1, KV, DIM / 32]).unwrap()),
    };
    let without = Codes {
        scales: None,
        ..right
    };
    let unsigned = Codes {
        codes: Tensor::u8(&bytes, &[1, KV, DIM]).unwrap(),
        ..right
    };
    let narrow = Codes {
        codes: Tensor::i8(&codes, &[1, KV, DIM / 2]).unwrap(),
        ..right
    };
    for (wrong, status) in [
        (without, Status::INVALID_ARGUMENT),
        (unsigned, Status::DTYPE),
        (narrow, Status::SHAPE),
    ] {
        fails(pass.put_codes(0, wrong, right), status, "");
        fails(pass.put_codes(0, right, wrong), status, "");
    }
    fails(pass.get_codes(0), Status::BAD_STATE, ""); // nothing was put
    pass.put_codes(0, right, right).unwrap();
    assert_eq!(pass.get_copy(0).unwrap().0.data, [1.0; KV * DIM]);
}

#[test]
fn codecs_and_queries_refuse_what_no_cache_takes() {
    let (status, dtype) = (Status::INVALID_ARGUMENT, Status::DTYPE);
    fails(storage_query(DType::Q8_0, 48, 0), status, "");
    fails(storage_query(DType::NF4, 128, 48), status, "");
    fails(storage_query(DType::Q8_0, 64, 32), status, "");
    fails(storage_query(DType::BOOL, 64, 0), dtype, "");
    let info = storage_query(DType::NF4, 96, 0).unwrap();
    assert_eq!(
        info,
        StorageInfo {
            dtype: DType::NF4,
            code_dtype: DType::U8,
            scale_dtype: Some(DType::F32),
            block: 32,
            codes_per_row: 48,
            scales_per_row: 3,
            bytes_per_row: 60,
        }
    );
    let whole = storage_query(DType::F8_E4M3, 65536, 0).unwrap();
    assert_eq!((whole.scale_dtype, whole.block), (None, 0));
    let encode = |codec: Codec| {
        let (values, mut codes) = ([0.5; 64], [0i8; 64]);
        let into = CodesMut {
            codes: TensorMut::i8(&mut codes, &[64])?,
            scales: None,
        };
        codec.encode(Tensor::f32(&values, &[64])?, into)
    };
    let codec = |dtype| Codec {
        dtype,
        ..Default::default()
    };
    fails(encode(codec(DType::Q8_0)), status, "scales");
    fails(encode(codec(DType::default())), dtype, "");
    let rotated = Codec {
        rotate: true,
        ..codec(DType::F8_E4M3)
    };
    fails(encode(rotated), status, "");
    let scaled = Codec {
        scale: 2.0,
        ..codec(DType::INT8)
    };
    fails(encode(scaled), status, "");
}

#[test]
fn an_encoder_cache_stores_codes() {
    let kind = Kind::Encoder(EncoderDesc::default());
    let mut cache = Cache::new(&device(), &desc(DType::Q4_0), &kind).unwrap();
    let mut pass = cache
        .begin_with(&[0], &[0], &[TOKEN_ENCODER_INPUT])
        .unwrap();
    let values = numbers(3 * KV, 1);
    put(&mut pass, 0, &values);
    let (k, _) = pass.get_codes(0).unwrap();
    let storage = Storage {
        dtype: DType::Q4_0,
        block: 0,
        rotate: false,
    };
    let encoded = Encoded::new(storage, &storage.codec(0.0), &values);
    for row in 0..3 * KV {
        assert_eq!(lent_row(&k, row / KV, row % KV), encoded.row(row));
    }
}

/// Full layers in 16 bits, windows in f8, and scales bound through the cache of both.
#[test]
fn layers_of_a_hybrid_have_storage_of_their_own() {
    let layer = |dtype, n_kv_heads, reach| Layer {
        desc: CacheDesc {
            n_layers: 0,
            n_kv_heads,
            ..desc(dtype)
        },
        kind: Kind::Causal(CausalDesc {
            reach,
            ..Default::default()
        }),
    };
    let window = layer(DType::F8_E4M3, KV as i32, 4);
    let single = layer(DType::F8_E4M3, 1, 4);
    let full = layer(DType::Q8_0, KV as i32, 0);
    let layers = [&window, &full, &window, &single];
    let mut cache = Cache::from_layers(&device(), layers).unwrap();
    let (two, status) = ([2.0, 4.0], Status::INVALID_ARGUMENT);
    // Layer 3 has one head.
    fails(
        cache.bind_scales(2, 4, Some(&two), None),
        status,
        "k_scales",
    );
    fails(
        cache.bind_scales(0, 2, Some(&two), None),
        Status::NOT_SUPPORTED,
        "",
    );
    cache.bind_scales(2, 3, Some(&two), None).unwrap();
    cache.bind_scales(3, 4, Some(&[8.0]), None).unwrap();

    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let ones = [1.0; KV * DIM];
    (0..3).for_each(|layer| put(&mut pass, layer, &ones));
    let one_head = Tensor::f32(&ones, &[1, 1, DIM]).unwrap();
    pass.put(3, one_head, one_head).unwrap();
    let first = |pass: &mut Pass<'_>, layer, head| {
        let (k, _) = pass.get_codes(layer).unwrap();
        k.codes.bytes(0, head)[0]
    };
    let (one, quarter, eighth) = (0x38, 0x28, 0x20); // of e4m3
    assert_eq!(first(&mut pass, 0, 1), one);
    assert_eq!(first(&mut pass, 1, 1), 127); // of q8_0
    assert_eq!(first(&mut pass, 2, 1), quarter);
    assert_eq!(first(&mut pass, 3, 0), eighth);
    for layer in 0..4 {
        let (k, v) = pass.get_copy(layer).unwrap();
        let near = |x: &f32| (x - 1.0).abs() < 1e-3; // 1 / 127 as f16
        assert!(k.data.iter().chain(&v.data).all(near), "layer {layer}");
    }
    for mut child in pass.children_mut() {
        let (k, _) = child.get_codes(0).unwrap(); // by the child's own numbers
        assert_ne!(k.codes.bytes(0, 0)[0], 0);
    }
    pass.commit().unwrap();
    cache.check().unwrap();
}
