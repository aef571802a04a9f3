//! Caches whose V is a part of K: a put takes no V, and views of V are views into K.
use kvc::*;
use storages::*;

mod storages;

const V_DIM: usize = 64;
const V_FIRST: usize = 64;

fn open(storage: Storage, v_in_k: bool) -> Cache {
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim_k: DIM as i32,
        head_dim_v: V_DIM as i32,
        v_first: if v_in_k { V_FIRST as i32 } else { 0 },
        v_in_k,
        dtype_k: storage.dtype,
        block_k: storage.block,
        rotate_k: storage.rotate,
        capacity: 16,
        max_batch: 8,
        ..Default::default()
    };
    let device = Device::open("cpu", 1).unwrap();
    Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default())).unwrap()
}

/// Those with no block of storage or rotation that the ends of V cut in two.
fn storages_of_latents() -> impl Iterator<Item = Storage> {
    let fits = |storage: &Storage| !storage.rotate && storage.block <= 64;
    every_storage().into_iter().filter(fits)
}

/// The same as a cache into which that part of K, as decoded, is put as V.
#[test]
fn v_is_a_part_of_k_in_every_storage_type() {
    let (k, q) = (numbers(3, 1), numbers(3 * 4, 2));
    let (q_shape, out_shape) = ([3, 4, DIM], [3, 4, V_DIM]);
    let q = Tensor::f32(&q, &q_shape).unwrap();
    let k = Tensor::f32(&k, &[3, 1, DIM]).unwrap();
    for storage in storages_of_latents() {
        let mut cache = open(storage, true);
        let mut out = [0.0; 3 * 4 * V_DIM];
        let mut pass = cache.begin(&[0, 1, 2], &[0; 3]).unwrap();
        let into = TensorMut::f32(&mut out, &out_shape).unwrap();
        pass.put_k_attention(0, k, q, into).unwrap();
        let (k_copy, v_copy) = pass.get_copy(0).unwrap();
        for cell in 0..3 {
            let part = &k_copy.row(cell, 0)[V_FIRST..][..V_DIM];
            assert_eq!(v_copy.row(cell, 0), part, "{storage:?}");
        }
        let (k_lent, v_lent) = pass.get_codes(0).unwrap();
        let of_k = k_lent.codes.bytes(1, 0);
        let of_v = v_lent.codes.bytes(1, 0);
        assert_eq!(of_v.len() * 2, of_k.len());
        assert_eq!(of_v.as_ptr(), of_k[of_k.len() / 2..].as_ptr()); // not a copy

        let mut apart = open(storage, false);
        let mut want = [0.0; 3 * 4 * V_DIM];
        let v = Tensor::f32(&v_copy.data, &v_copy.shape).unwrap();
        let mut other = apart.begin(&[0, 1, 2], &[0; 3]).unwrap();
        let into = TensorMut::f32(&mut want, &out_shape).unwrap();
        other.put_attention(0, k, v, q, into).unwrap();
        for (got, want) in out.iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{storage:?}: {got}, not {want}");
        }
    }
}

#[test]
fn latents_move_to_another_cache_byte_for_byte() {
    let k = numbers(3, 1);
    let k = Tensor::f32(&k, &[3, 1, DIM]).unwrap();
    for storage in storages_of_latents() {
        let (mut from, mut to) = (open(storage, true), open(storage, true));
        let mut pass = from.begin(&[0, 1, 2], &[0; 3]).unwrap();
        pass.put_k(0, k).unwrap();
        let mut restored = to.begin(&[0, 1, 2], &[0; 3]).unwrap();
        let (lent, _) = pass.get_codes(0).unwrap();
        restored.put_k_codes(0, lent.cells(0..3)).unwrap();
        pass.commit().unwrap();
        restored.commit().unwrap();
        assert_eq!(from.digest(), to.digest(), "{storage:?}");
    }
}

#[test]
fn each_of_the_puts_is_refused_by_the_other_kind_of_cache() {
    let storage = Storage {
        dtype: DType::F16,
        block: 0,
        rotate: false,
    };
    let (mut latent, mut apart) = (open(storage, true), open(storage, false));
    let (values, bits, mut out) = ([0.5; DIM], [0u16; DIM], [0.0; V_DIM]);
    let k = Tensor::f32(&values, &[1, 1, DIM]).unwrap();
    let v = Tensor::f32(&values, &[1, 1, V_DIM]).unwrap();
    let codes = |n| Codes {
        codes: Tensor::f16(&bits, &[1, 1, n]).unwrap(),
        scales: None,
    };
    let mut out = TensorMut::f32(&mut out, &[1, 1, V_DIM]).unwrap();
    let status = Status::INVALID_ARGUMENT;

    let mut pass = latent.begin(&[0], &[0]).unwrap();
    fails(pass.put(0, k, v), status, "v");
    fails(pass.put_attention(0, k, v, k, out.reborrow()), status, "v");
    fails(pass.put_codes(0, codes(DIM), codes(V_DIM)), status, "v");
    pass.put_k(0, k).unwrap();
    fails(pass.get_codes(1), status, "layer 1");

    let mut pass = apart.begin(&[0], &[0]).unwrap();
    fails(pass.put_k(0, k), status, "v");
    fails(pass.put_k_attention(0, k, k, out.reborrow()), status, "v");
    fails(pass.put_k_codes(0, codes(DIM)), status, "v");
    pass.put(0, k, v).unwrap();
}

#[test]
fn an_extra_goes_with_a_put_of_latents() {
    let storage = Storage {
        dtype: DType::BF16,
        block: 0,
        rotate: false,
    };
    let mut cache = open(storage, true);
    let (values, mut out, mut lse) = ([0.5; DIM], [0.0; V_DIM], [0.0]);
    let k = Tensor::f32(&values, &[1, 1, DIM]).unwrap();
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let extra = AttentionExtra {
        lse: Some(TensorMut::f32(&mut lse, &[1, 1]).unwrap()),
        ..Default::default()
    };
    let into = TensorMut::f32(&mut out, &[1, 1, V_DIM]).unwrap();
    pass.put_k_attention_with(0, k, k, into, extra).unwrap();
    assert_eq!(out, [0.5; V_DIM]);
    let score = DIM as f32 * 0.25 / (DIM as f32).sqrt(); // of the only key
    assert!((lse[0] - score).abs() < 1e-5, "{lse:?}");
}

/// Keys are rotated by blocks of 64, one of which is V: the codec reads the view of V by itself.
#[test]
fn v_of_rotated_keys_is_rotated_back() {
    const K_DIM: usize = 192;
    for dtype in [DType::Q8_0, DType::Q4_0, DType::NF4] {
        let desc = CacheDesc {
            n_layers: 1,
            n_kv_heads: 1,
            head_dim_k: K_DIM as i32,
            head_dim_v: V_DIM as i32,
            v_first: V_FIRST as i32,
            v_in_k: true,
            dtype_k: dtype,
            rotate_k: true,
            capacity: 16,
            max_batch: 8,
            ..Default::default()
        };
        let device = Device::open("cpu", 1).unwrap();
        let kind = Kind::Causal(CausalDesc::default());
        let mut cache = Cache::new(&device, &desc, &kind).unwrap();
        let values = numbers(3, 4); // of two tokens
        let k = Tensor::f32(&values, &[2, 1, K_DIM]).unwrap();
        let mut pass = cache.begin(&[0, 1], &[0, 0]).unwrap();
        pass.put_k(0, k).unwrap();
        let (k, v) = pass.get_copy(0).unwrap();
        let codec = Codec {
            dtype,
            rotate: true,
            ..Default::default()
        };
        let mut decoded = [0.0; 2 * V_DIM];
        let into = TensorMut::f32(&mut decoded, &[2, 1, V_DIM]).unwrap();
        let (_, lent) = pass.get_codes(0).unwrap();
        codec.decode(lent.cells(0..2), into).unwrap();
        assert_eq!(decoded, v.data[..], "{dtype:?}");
        for cell in 0..2 {
            let part = &k.row(cell, 0)[V_FIRST..][..V_DIM];
            assert_eq!(v.row(cell, 0), part, "{dtype:?}");
        }
    }
}
