//! Every way to store vectors, and buffers for what their codecs make.
#![allow(dead_code)] // each test program uses some of it
use kvc::*;

pub const DIM: usize = 128;

/// A way to store vectors: of K and of V alike.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    pub dtype: DType,
    pub block: i32,
    pub rotate: bool,
}

/// Every type, with every block and with and without a rotation where it takes them.
pub fn every_storage() -> Vec<Storage> {
    let plain = |dtype| Storage {
        dtype,
        block: 0,
        rotate: false,
    };
    let whole = [DType::F32, DType::F16, DType::BF16];
    let f8 = [DType::F8_E4M3, DType::F8_E5M2];
    let mut all: Vec<_> = whole.into_iter().chain(f8).map(plain).collect();
    for rotate in [false, true] {
        for dtype in [DType::Q8_0, DType::Q4_0, DType::INT8, DType::NF4] {
            all.push(Storage {
                rotate,
                ..plain(dtype)
            });
        }
        for block in [16, 32, 64, 128] {
            all.push(Storage {
                dtype: DType::NF4,
                block,
                rotate,
            });
        }
    }
    all
}

impl Storage {
    pub fn is_f8(&self) -> bool {
        matches!(self.dtype, DType::F8_E4M3 | DType::F8_E5M2)
    }

    /// `scale`: of f8.
    pub fn codec(&self, scale: f32) -> Codec {
        Codec {
            dtype: self.dtype,
            rotate: self.rotate,
            block: self.block,
            scale: if self.is_f8() { scale } else { 0.0 },
        }
    }
}

/// Elements of one type.
#[derive(Debug)]
pub enum Buffer {
    F32(Vec<f32>),
    Bits(DType, Vec<u16>),
    I8(Vec<i8>),
    Bytes(DType, Vec<u8>),
}

impl Buffer {
    pub fn new(dtype: DType, n: usize) -> Buffer {
        match dtype {
            DType::F32 => Buffer::F32(vec![0.0; n]),
            DType::F16 | DType::BF16 => Buffer::Bits(dtype, vec![0; n]),
            DType::I8 => Buffer::I8(vec![0; n]),
            DType::U8 | DType::F8_E4M3 | DType::F8_E5M2 => Buffer::Bytes(dtype, vec![0; n]),
            other => panic!("no code and no scale is of {other:?}"),
        }
    }

    pub fn tensor(&self, shape: &[usize]) -> Tensor<'_> {
        match self {
            Buffer::F32(x) => Tensor::f32(x, shape),
            Buffer::Bits(DType::F16, x) => Tensor::f16(x, shape),
            Buffer::Bits(_, x) => Tensor::bf16(x, shape),
            Buffer::I8(x) => Tensor::i8(x, shape),
            Buffer::Bytes(DType::U8, x) => Tensor::u8(x, shape),
            Buffer::Bytes(DType::F8_E4M3, x) => Tensor::f8_e4m3(x, shape),
            Buffer::Bytes(_, x) => Tensor::f8_e5m2(x, shape),
        }
        .unwrap()
    }

    pub fn tensor_mut(&mut self, shape: &[usize]) -> TensorMut<'_> {
        match self {
            Buffer::F32(x) => TensorMut::f32(x, shape),
            Buffer::Bits(DType::F16, x) => TensorMut::f16(x, shape),
            Buffer::Bits(_, x) => TensorMut::bf16(x, shape),
            Buffer::I8(x) => TensorMut::i8(x, shape),
            Buffer::Bytes(DType::U8, x) => TensorMut::u8(x, shape),
            Buffer::Bytes(DType::F8_E4M3, x) => TensorMut::f8_e4m3(x, shape),
            Buffer::Bytes(_, x) => TensorMut::f8_e5m2(x, shape),
        }
        .unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Buffer::F32(x) => x.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Buffer::Bits(_, x) => x.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Buffer::I8(x) => x.iter().map(|&x| x as u8).collect(),
            Buffer::Bytes(_, x) => x.clone(),
        }
    }
}

/// Codes and scales of `n` vectors.
#[derive(Debug)]
pub struct Encoded {
    pub codes: Buffer,
    pub scales: Option<Buffer>,
    info: StorageInfo,
    n: usize,
}

impl Encoded {
    pub fn new(storage: Storage, codec: &Codec, values: &[f32]) -> Encoded {
        let info = storage_query(storage.dtype, DIM as i32, storage.block).unwrap();
        let n = values.len() / DIM;
        let mut encoded = Encoded {
            codes: Buffer::new(info.code_dtype, n * info.codes_per_row),
            scales: info
                .scale_dtype
                .map(|dtype| Buffer::new(dtype, n * info.scales_per_row)),
            info,
            n,
        };
        let scales = encoded.scales.as_mut();
        let into = CodesMut {
            codes: encoded.codes.tensor_mut(&[n, info.codes_per_row]),
            scales: scales.map(|scales| scales.tensor_mut(&[n, info.scales_per_row])),
        };
        codec
            .encode(Tensor::f32(values, &[n, DIM]).unwrap(), into)
            .unwrap();
        encoded
    }

    /// As [n, heads, …].
    pub fn tensors(&self, heads: usize) -> Codes<'_> {
        let shape = |elements| [self.n / heads, heads, elements];
        let scales = self.scales.as_ref();
        Codes {
            codes: self.codes.tensor(&shape(self.info.codes_per_row)),
            scales: scales.map(|scales| scales.tensor(&shape(self.info.scales_per_row))),
        }
    }

    pub fn decode(&self, codec: &Codec) -> Vec<f32> {
        let mut values = vec![0.0; self.n * DIM];
        let into = TensorMut::f32(&mut values, &[self.n, 1, DIM]).unwrap();
        codec.decode(self.tensors(1), into).unwrap();
        values
    }

    /// The bytes of the codes and of the scales of a vector.
    pub fn row(&self, row: usize) -> (Vec<u8>, Vec<u8>) {
        let part = |buffer: &Buffer| {
            let bytes = buffer.bytes();
            let length = bytes.len() / self.n;
            bytes[row * length..][..length].to_vec()
        };
        (
            part(&self.codes),
            self.scales.as_ref().map_or(Vec::new(), part),
        )
    }
}

/// Numbers of several magnitudes, with an outlier in each vector.
pub fn numbers(n_vectors: usize, salt: usize) -> Vec<f32> {
    let number = |i: usize| {
        let wave = ((i * 37 + salt * 101) as f32 * 0.618).sin();
        wave * if i % DIM == 9 { 12.0 } else { 1.0 }
    };
    (0..n_vectors * DIM).map(number).collect()
}

pub fn fails<T, E: Into<Error>>(result: std::result::Result<T, E>, status: Status, part: &str) {
    let error: Error = result.err().expect("this should have failed").into();
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error}");
}

/// The bytes of a lent row's codes and scales.
pub fn lent_row(view: &CodesView<'_>, cell: usize, head: usize) -> (Vec<u8>, Vec<u8>) {
    let scales = view.scales.as_ref();
    (
        view.codes.bytes(cell, head).to_vec(),
        scales.map_or(Vec::new(), |scales| scales.bytes(cell, head).to_vec()),
    )
}
