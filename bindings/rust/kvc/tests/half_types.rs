//! The types of the crate `half`: they go in, and come out, as the bits do.
#![cfg(feature = "half")]
use half::{bf16, f16};
use kvc::*;

const DIM: usize = 8;
const SHAPE: [usize; 3] = [1, 1, DIM];

fn open(dtype: DType) -> Cache {
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim_k: DIM as i32,
        dtype_k: dtype,
        dtype_v: dtype,
        capacity: 8,
        max_batch: 4,
        ..Default::default()
    };
    let device = Device::open("cpu", 1).unwrap();
    Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default())).unwrap()
}

#[test]
fn slices_of_half_precision_go_in_and_come_out() {
    let rows: Vec<f16> = (0..DIM).map(|i| f16::from_f32(i as f32 / 4.0)).collect();
    let bits: Vec<u16> = rows.iter().map(|row| row.to_bits()).collect();
    let mut cache = open(DType::F16);
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let (x, same) = (Tensor::f16(&rows, &SHAPE), Tensor::f16(&bits, &SHAPE));
    let mut out = [f16::ZERO; DIM];
    let into = TensorMut::f16(&mut out, &SHAPE).unwrap();
    let (x, same) = (x.unwrap(), same.unwrap());
    pass.put_attention(0, x, same, x, into).unwrap();
    assert_eq!(out[..], rows[..]); // one token attends to itself
    let (k, v) = pass.get(0).unwrap();
    assert_eq!(k.f16(0, 0).unwrap(), &rows[..]);
    assert_eq!(v.bits(0, 0).unwrap(), &bits[..]);
    assert!(k.bf16(0, 0).is_none() && k.f32(0, 0).is_none());
}

#[test]
fn slices_of_bfloat16_go_in_and_come_out() {
    let rows: Vec<bf16> = (0..DIM).map(|i| bf16::from_f32(i as f32 / 4.0)).collect();
    let mut cache = open(DType::BF16);
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let x = Tensor::bf16(&rows, &SHAPE).unwrap();
    let mut out = [bf16::ZERO; DIM];
    let into = TensorMut::bf16(&mut out, &SHAPE).unwrap();
    pass.put_attention(0, x, x, x, into).unwrap();
    assert_eq!(out[..], rows[..]);
    let (k, _) = pass.get(0).unwrap();
    assert_eq!(k.bf16(0, 0).unwrap(), &rows[..]);
    assert!(k.f16(0, 0).is_none());
}

#[test]
fn states_in_place_are_slices_of_half_types() {
    let open = |dtype_state| {
        let kind = RecurrentDesc {
            state_size: DIM as i64,
            dtype_state,
            ..Default::default()
        };
        let desc = CacheDesc {
            n_layers: 1,
            max_batch: 1,
            ..Default::default()
        };
        let device = Device::open("cpu", 1).unwrap();
        Cache::new(&device, &desc, &Kind::Recurrent(kind)).unwrap()
    };
    let mut cache = open(DType::F16);
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let mut view = pass.state_view(0, Part::Recurrent).unwrap();
    assert!(view.bf16().is_none() && view.f32().is_none());
    let mut states = view.f16().unwrap().next().unwrap();
    states.step(0).1.fill(f16::ONE);
    view.done().unwrap();
    pass.commit().unwrap();
    let mut state = [f16::ZERO; DIM];
    let into = TensorMut::f16(&mut state, &[DIM]).unwrap();
    cache.state_gather(0, Part::Recurrent, 0, 1, into).unwrap();
    assert_eq!(state, [f16::ONE; DIM]);

    let mut cache = open(DType::BF16);
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let mut view = pass.state_view(0, Part::Recurrent).unwrap();
    assert!(view.f16().is_none());
    let states = view.bf16().unwrap().next().unwrap();
    assert_eq!(states.before(), [bf16::ZERO; DIM]);
}

#[test]
fn slices_of_half_types_are_encoded_and_decoded() {
    let rows: Vec<f16> = (0..32).map(|i| f16::from_f32(i as f32 - 9.0)).collect();
    let codec = Codec {
        dtype: DType::Q8_0,
        ..Default::default()
    };
    let (mut codes, mut scales) = ([0i8; 32], [f16::ZERO; 1]);
    let into = CodesMut {
        codes: TensorMut::i8(&mut codes, &[32]).unwrap(),
        scales: Some(TensorMut::f16(&mut scales, &[1]).unwrap()),
    };
    codec
        .encode(Tensor::f16(&rows, &[32]).unwrap(), into)
        .unwrap();
    assert_eq!(scales[0], f16::from_f32(22.0 / 127.0));
    let from = Codes {
        codes: Tensor::i8(&codes, &[32]).unwrap(),
        scales: Some(Tensor::f16(&scales, &[1]).unwrap()),
    };
    let mut decoded = [bf16::ZERO; 32];
    let into = TensorMut::bf16(&mut decoded, &[32]).unwrap();
    codec.decode(from, into).unwrap();
    for (row, decoded) in rows.iter().zip(decoded) {
        assert!((row.to_f32() - decoded.to_f32()).abs() < 0.2);
    }
}
