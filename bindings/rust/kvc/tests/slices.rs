//! Slices and the shapes that a caller gives them.
use kvc::*;

fn refused<T>(result: Result<T>, status: Status, parts: &[&str]) {
    let error = result.err().expect("this should have failed");
    assert_eq!(error.status, status, "{error}");
    for part in parts {
        assert!(error.message.contains(part), "{error} lacks {part}");
    }
}

#[test]
fn a_slice_that_is_too_short_is_refused_with_both_numbers() {
    let mut data = [0.0f32; 23];
    let both = ["24 elements", "has 23", "[2, 3, 4]"];
    refused(Tensor::f32(&data, &[2, 3, 4]), Status::SHAPE, &both);
    refused(TensorMut::f32(&mut data, &[2, 3, 4]), Status::SHAPE, &both);
    refused(Tensor::f16(&[0u16; 23], &[2, 3, 4]), Status::SHAPE, &both);
    refused(Tensor::bf16(&[0u16; 23], &[2, 3, 4]), Status::SHAPE, &both);
    refused(Tensor::bool(&[true; 23], &[2, 3, 4]), Status::SHAPE, &both);
    refused(
        Tensor::bool_bytes(&[1; 23], &[2, 3, 4]),
        Status::SHAPE,
        &both,
    );
    let huge = [usize::MAX, usize::MAX];
    refused(Tensor::f32(&data, &huge), Status::SHAPE, &["has 23"]);
    assert!(Tensor::f32(&[], &[3, 0]).is_ok()); // no elements
}

#[test]
fn a_shape_that_no_tensor_has_is_refused() {
    let data = [0.0f32; 8];
    let (none, nine) = ([0usize; 0], [1usize; 9]);
    refused(Tensor::f32(&data, &none), Status::SHAPE, &["0 dimensions"]);
    refused(Tensor::f32(&data, &nine), Status::SHAPE, &["9 dimensions"]);
    refused(
        Tensor::f32(&[], &[0, usize::MAX]),
        Status::OVERFLOW,
        &["extent"],
    );
}

/// Buffers for the largest batch serve every batch: kvc reads and writes only what the shape covers.
#[test]
fn slices_longer_than_their_shape_are_taken() {
    const DIM: usize = 8;
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim_k: DIM as i32,
        capacity: 8,
        max_batch: 4,
        ..Default::default()
    };
    let device = Device::open("cpu", 1).unwrap();
    let mut cache = Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default())).unwrap();
    let mut rows = [f32::NAN; 4 * DIM]; // not a number behind the two rows of the batch
    rows[..2 * DIM].fill(3.0);
    let (mut out, mut mask) = ([7.0f32; 4 * DIM], [true; 16]);
    let shape = [2, 1, DIM];
    let mut pass = cache.begin(&[0, 1], &[0, 0]).unwrap();
    let x = Tensor::f32(&rows, &shape).unwrap();
    let into = TensorMut::f32(&mut out, &shape).unwrap();
    pass.put_attention(0, x, x, x, into).unwrap();
    assert_eq!(out[..2 * DIM], [3.0; 2 * DIM]);
    assert_eq!(out[2 * DIM..], [7.0; 2 * DIM]); // not written
    let into = TensorMut::bool(&mut mask, &[2, 2]).unwrap();
    pass.mask(0, into).unwrap();
    assert_eq!(mask[..5], [true, false, true, true, true]);
    pass.commit().unwrap();
}
