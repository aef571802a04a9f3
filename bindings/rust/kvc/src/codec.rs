use crate::error::{check, Result};
use crate::tensor::{DType, Tensor, TensorMut};
use kvc_sys as sys;
use std::mem::size_of;
use std::ptr;

/// How vectors of one size lie in a storage type: [`storage_query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageInfo {
    pub dtype: DType,
    /// The element type of codes: the type itself (F32, F16, BF16, F8), I8 or U8.
    pub code_dtype: DType,
    /// The element type of stored scales; `None`: none is stored.
    pub scale_dtype: Option<DType>,
    /// Values that share a stored scale; 0: none is stored.
    pub block: usize,
    /// Elements of `code_dtype` of one vector.
    pub codes_per_row: usize,
    pub scales_per_row: usize,
    /// Codes and scales together.
    pub bytes_per_row: usize,
}

/// Tells how vectors of `head_dim` numbers lie in a storage type. `block` is for NF4: 16, 32, 64 or
/// 128; 0: the largest of 64, 32 and 16 that divides head_dim. For other types it is 0.
///
/// ```
/// # use kvc::*;
/// # fn main() -> Result<()> {
/// let info = storage_query(DType::Q8_0, 128, 0)?;
/// assert_eq!((info.code_dtype, info.codes_per_row), (DType::I8, 128));
/// assert_eq!((info.scale_dtype, info.scales_per_row), (Some(DType::F16), 4));
/// assert_eq!(info.bytes_per_row, 136); // of F16: 256
/// # Ok(())
/// # }
/// ```
pub fn storage_query(dtype: DType, head_dim: i32, block: i32) -> Result<StorageInfo> {
    let mut info = sys::kvc_storage_info {
        struct_size: size_of::<sys::kvc_storage_info>() as u32,
        dtype: 0,
        code_dtype: 0,
        scale_dtype: 0,
        block: 0,
        codes_per_row: 0,
        scales_per_row: 0,
        bytes_per_row: 0,
    };
    check(unsafe { sys::kvc_storage_query(dtype.0, head_dim, block, &mut info) })?;
    Ok(StorageInfo {
        dtype: DType(info.dtype),
        code_dtype: DType(info.code_dtype),
        scale_dtype: match info.scale_dtype {
            0 => None,
            dtype => Some(DType(dtype)),
        },
        block: info.block as usize,
        codes_per_row: info.codes_per_row as usize,
        scales_per_row: info.scales_per_row as usize,
        bytes_per_row: info.bytes_per_row as usize,
    })
}

/// Rows of codes, and of scales in a type that stores some, as arguments that kvc reads.
#[derive(Clone, Copy, Debug)]
#[must_use = "codes are an argument of a call"]
pub struct Codes<'a> {
    pub codes: Tensor<'a>,
    pub scales: Option<Tensor<'a>>,
}

/// [`Codes`] that kvc writes.
#[derive(Debug)]
#[must_use = "codes are an argument of a call"]
pub struct CodesMut<'a> {
    pub codes: TensorMut<'a>,
    pub scales: Option<TensorMut<'a>>,
}

/// Numbers of F32, F16 or BF16 are codes of themselves, without scales.
impl<'a> From<Tensor<'a>> for Codes<'a> {
    fn from(codes: Tensor<'a>) -> Codes<'a> {
        Codes {
            codes,
            scales: None,
        }
    }
}

impl Codes<'_> {
    /// Returns the address of the scales, null if they are absent.
    pub(crate) fn scales(&self) -> *const sys::kvc_tensor {
        self.scales
            .as_ref()
            .map_or(ptr::null(), |scales| &scales.raw)
    }
}

/// The codec of a storage type. It works on the host, without a cache, and makes byte for byte what a
/// cache stores. See `kvc/storage.h`, which defines every type.
///
/// ```
/// use kvc::{Codec, Codes, CodesMut, DType, Tensor, TensorMut};
/// # fn main() -> kvc::Result<()> {
/// let vectors: Vec<f32> = (0..2 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
/// let codec = Codec { dtype: DType::Q8_0, ..Default::default() };
/// let (mut codes, mut scales) = ([0i8; 2 * 64], [0u16; 2 * 2]); // one for 32: storage_query tells
/// codec.encode(
///     Tensor::f32(&vectors, &[2, 64])?,
///     CodesMut {
///         codes: TensorMut::i8(&mut codes, &[2, 64])?,
///         scales: Some(TensorMut::f16(&mut scales, &[2, 2])?),
///     },
/// )?;
/// let mut decoded = [0.0; 2 * 64];
/// codec.decode(
///     Codes {
///         codes: Tensor::i8(&codes, &[2, 64])?,
///         scales: Some(Tensor::f16(&scales, &[2, 2])?),
///     },
///     TensorMut::f32(&mut decoded, &[2, 64])?,
/// )?;
/// assert!(vectors.iter().zip(decoded).all(|(x, y)| (x - y).abs() < 0.005));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Codec {
    /// A storage type.
    pub dtype: DType,
    /// Values are rotated before they are encoded, and back after they are decoded, as with
    /// [`CacheDesc::rotate_k`](crate::CacheDesc::rotate_k).
    pub rotate: bool,
    /// NF4: as in [`storage_query`]; else 0.
    pub block: i32,
    /// F8: what codes are multiplied with, 2^-100 … 2^100; 0: 1. Else 0.
    pub scale: f32,
}

impl Codec {
    /// Encodes vectors: `values` [..., head size] of F32, F16 or BF16, codes [..., codes per row],
    /// scales [..., scales per row].
    pub fn encode(&self, values: Tensor<'_>, mut into: CodesMut<'_>) -> Result<()> {
        let scales = into
            .scales
            .as_mut()
            .map_or(ptr::null_mut(), |scales| &mut scales.raw as *mut _);
        check(unsafe { sys::kvc_encode(&self.raw(), &values.raw, &mut into.codes.raw, scales) })
    }

    /// Decodes vectors into F32, F16 or BF16. Shapes are those of [`Codec::encode`].
    pub fn decode(&self, from: Codes<'_>, mut values: TensorMut<'_>) -> Result<()> {
        let (codes, scales) = (&from.codes.raw, from.scales());
        check(unsafe { sys::kvc_decode(&self.raw(), codes, scales, &mut values.raw) })
    }

    fn raw(&self) -> sys::kvc_codec_desc {
        sys::kvc_codec_desc {
            struct_size: size_of::<sys::kvc_codec_desc>() as u32,
            dtype: self.dtype.0,
            flags: if self.rotate {
                sys::KVC_CODEC_ROTATE
            } else {
                0
            },
            block: self.block,
            scale: self.scale,
        }
    }
}
