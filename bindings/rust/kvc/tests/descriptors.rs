//! What descriptors say, and what the library refuses of it.
use kvc::*;

const DIM: usize = 10;

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim_k: DIM as i32,
        capacity: 8,
        max_batch: 4,
        ..Default::default()
    }
}

fn create(desc: &CacheDesc) -> Result<Cache> {
    let device = Device::open("cpu", 1)?;
    Cache::new(&device, desc, &Kind::Causal(CausalDesc::default()))
}

#[test]
fn storage_types_are_taken_where_the_head_size_fits_them() {
    let (fits, blocks) = (Ok(()), Err(Status::INVALID_ARGUMENT)); // 10 is no multiple of a block
    let types = [
        (DType::F32, fits),
        (DType::F16, fits),
        (DType::BF16, fits),
        (DType::F8_E4M3, fits),
        (DType::F8_E5M2, fits),
        (DType::INT8, fits),
        (DType::Q8_0, blocks),
        (DType::Q4_0, blocks),
        (DType::NF4, blocks),
        (DType::BOOL, Err(Status::DTYPE)),
        (DType::I8, Err(Status::DTYPE)), // of codes
        (DType(12345), Err(Status::DTYPE)),
    ];
    for (dtype, want) in types {
        let k = CacheDesc {
            dtype_k: dtype,
            ..desc()
        };
        let v = CacheDesc {
            dtype_v: dtype,
            ..desc()
        };
        for desc in [k, v] {
            let got = create(&desc).map(drop).map_err(|error| error.status);
            assert_eq!(got, want, "{dtype:?}");
        }
    }
}

#[test]
fn settings_that_do_not_fit_the_storage_are_refused() {
    type Setting = fn(&mut CacheDesc);
    let settings: [Setting; 11] = [
        |desc| desc.rotate_k = true,
        |desc| desc.rotate_v = true,
        |desc| (desc.rotate_k, desc.dtype_k, desc.head_dim_k) = (true, DType::INT8, 9),
        |desc| (desc.interleaved, desc.dtype_k) = (true, DType::F16),
        |desc| (desc.interleaved, desc.dtype_k, desc.dtype_v) = (true, DType::INT8, DType::INT8),
        |desc| (desc.v_in_k, desc.dtype_v) = (true, DType::F32),
        |desc| (desc.v_in_k, desc.interleaved) = (true, true),
        |desc| (desc.v_in_k, desc.head_dim_v, desc.v_first) = (true, 4, 7),
        |desc| desc.block_k = 32,
        |desc| desc.block_v = 32,
        |desc| desc.v_first = 1,
    ];
    for (i, set) in settings.iter().enumerate() {
        let mut desc = desc();
        set(&mut desc);
        let error = create(&desc).err().unwrap();
        assert_eq!(error.status, Status::INVALID_ARGUMENT, "{i}: {error}");
    }
}

#[test]
fn settings_in_use_are_accepted() {
    let desc = CacheDesc {
        strict: true,
        zero_on_free: true,
        prefault: true,
        ..desc()
    };
    let mut cache = create(&desc).unwrap();
    let gap = cache.begin(&[1], &[0]).err().unwrap();
    assert_eq!(gap.status, Status::INVALID_ARGUMENT); // strict: no gaps
    type Setting = fn(&mut CacheDesc);
    let settings: [Setting; 4] = [
        |desc| desc.interleaved = true,
        |desc| (desc.v_in_k, desc.head_dim_v, desc.v_first) = (true, 4, 6),
        |desc| (desc.rotate_k, desc.dtype_k) = (true, DType::INT8),
        |desc| (desc.rotate_v, desc.dtype_v) = (true, DType::INT8),
    ];
    for set in settings {
        let mut desc = desc.clone();
        set(&mut desc);
        drop(create(&desc).unwrap());
    }
}

/// RoPE over dimensions 4 … 7 alone: a key that moves by one position rotates there and nowhere
/// else.
#[test]
fn rope_rotates_from_first_dim_on() {
    let mut cache = create(&desc()).unwrap();
    let rope = RopeDesc {
        first_dim: 4,
        n_dims: 4,
        frequency_factors: Some(&[1.0, 2.0]),
        ..Default::default()
    };
    cache.bind_rope(0, 1, &rope).unwrap();
    let (data, shape) = ([1.0f32; 2 * DIM], [2, 1, DIM]);
    let rows = Tensor::f32(&data, &shape).unwrap();
    let mut pass = cache.begin(&[0, 1], &[0, 0]).unwrap();
    pass.put(0, rows, rows).unwrap();
    pass.commit().unwrap();
    cache.remove(0, 0, 1).unwrap();
    let mut keys = [0.0f32; DIM];
    let into = TensorMut::f32(&mut keys, &[1, 1, DIM]).unwrap();
    cache.gather(0, 0, Some(into), None).unwrap();
    let theta = [-1.0f64, -1.0 / 100.0 / 2.0]; // one position back; 10000^(-2/4) is 1/100
    let mut want = [1.0f64; DIM];
    for (pair, theta) in theta.into_iter().enumerate() {
        want[4 + 2 * pair] = theta.cos() - theta.sin();
        want[5 + 2 * pair] = theta.sin() + theta.cos();
    }
    for (dim, (&got, want)) in keys.iter().zip(want).enumerate() {
        assert!(
            (f64::from(got) - want).abs() < 1e-6,
            "{dim}: {got} is not {want}"
        );
    }
}

#[test]
fn the_length_of_factors_follows_from_the_dimensions_that_rotate() {
    let mut cache = create(&desc()).unwrap();
    // (n_dims, first_dim, factors)
    let accepted = [(0, 0, 5), (0, 3, 3), (4, 6, 2), (0, 8, 1)];
    let refused = [
        (0, 3, 4),
        (4, 7, 2),
        (0, 10, 0),
        (0, 11, 0),
        (0, -2, 6),
        (-4, 0, 0),
    ];
    for (i, &(n_dims, first_dim, n)) in accepted.iter().chain(&refused).enumerate() {
        let factors = vec![1.0; n];
        let rope = RopeDesc {
            n_dims,
            first_dim,
            frequency_factors: Some(&factors),
            ..Default::default()
        };
        let got = cache.bind_rope(0, 1, &rope).map_err(|error| error.status);
        let want = if i < accepted.len() {
            Ok(())
        } else {
            Err(Status::INVALID_ARGUMENT)
        };
        assert_eq!(got, want, "{rope:?}");
    }
}
