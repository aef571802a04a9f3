use crate::elements::{BF16Element, F16Element};
use crate::error::{Error, Result, Status};
use std::fmt;
use std::marker::PhantomData;
use std::os::raw::c_void;

/// An element type of tensors or a storage type of a cache. A number and not an enum: a later
/// library may return one of its own. The default, 0, is for descriptors: the cache stores F32.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DType(pub u32);

macro_rules! dtypes {
    ($($name:ident = $value:ident, $what:literal;)*) => {
        impl DType {
            $(#[doc = $what] pub const $name: DType = DType(kvc_sys::$value);)*
        }

        impl fmt::Debug for DType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(DType::$name => f.write_str(stringify!($name)),)*
                    DType(number) => write!(f, "DType({number:#x})"),
                }
            }
        }
    };
}

dtypes! {
    F32 = KVC_F32, "IEEE single precision.";
    F16 = KVC_F16, "IEEE half precision.";
    BF16 = KVC_BF16, "The upper half of an f32.";
    BOOL = KVC_BOOL, "One byte. For masks.";
    F64 = KVC_F64, "IEEE double precision. For the softmax of an operator.";
    I32 = KVC_I32, "For masks of passes of rows.";
    I8 = KVC_I8, "Codes of Q8_0 and INT8.";
    U8 = KVC_U8, "Codes of Q4_0 and NF4, two in a byte.";
    F8_E4M3 = KVC_F8_E4M3, "8 bits without infinity, up to 448; storage with bound scales.";
    F8_E5M2 = KVC_F8_E5M2, "8 bits, up to 57344; storage with bound scales.";
    Q8_0 = KVC_Q8_0, "Storage in blocks of 32 8-bit codes with one f16 scale.";
    Q4_0 = KVC_Q4_0, "Storage in blocks of 32 4-bit codes with one f16 scale.";
    INT8 = KVC_INT8, "Storage of 8-bit codes with one f32 scale per vector.";
    NF4 = KVC_NF4,
        "Storage in blocks of 16, 32, 64 or 128 4-bit codes of a table with one f32 scale.";
}

fn view(
    data: *mut c_void,
    length: usize,
    dtype: u32,
    shape: &[usize],
) -> Result<kvc_sys::kvc_tensor> {
    let mut extents = [0i64; kvc_sys::KVC_MAX_DIMS];
    if shape.is_empty() || shape.len() > extents.len() {
        let (n, most) = (shape.len(), extents.len());
        let message = format!("shape {shape:?} has {n} dimensions, a tensor has 1 to {most}");
        return Err(Error::new(Status::SHAPE, message));
    }
    covers(length, shape)?;
    for (extent, &wanted) in extents.iter_mut().zip(shape) {
        // Next to an extent of 0, the product is 0 whatever this extent is.
        *extent = i64::try_from(wanted).map_err(|_| {
            let message = format!("extent {wanted} of shape {shape:?} is more than i64 holds");
            Error::new(Status::OVERFLOW, message)
        })?;
    }
    let mut tensor = empty();
    crate::error::check(unsafe {
        kvc_sys::kvc_tensor_dense(
            data,
            dtype,
            shape.len() as i32,
            extents.as_ptr(),
            &mut tensor,
        )
    })?;
    Ok(tensor)
}

fn view_on_gpu(
    id: i32,
    dtype: DType,
    data: *mut c_void,
    shape: &[usize],
) -> Result<kvc_sys::kvc_tensor> {
    let mut tensor = view(data, usize::MAX, dtype.0, shape)?;
    tensor.device_type = kvc_sys::KVC_CUDA;
    tensor.device_id = id;
    Ok(tensor)
}

/// Refuses slices that are too short for their shape: the library is not told their length.
fn covers(length: usize, shape: &[usize]) -> Result<()> {
    let needed = match shape.contains(&0) {
        true => Some(0),
        false => shape
            .iter()
            .try_fold(1usize, |product, &extent| product.checked_mul(extent)),
    };
    let needed = match needed {
        Some(needed) if needed <= length => return Ok(()),
        Some(needed) => needed.to_string(),
        None => format!("more than {}", usize::MAX),
    };
    Err(Error::new(
        Status::SHAPE,
        format!("shape {shape:?} needs {needed} elements, the slice has {length}"),
    ))
}

pub(crate) fn empty() -> kvc_sys::kvc_tensor {
    // A struct of integers and a pointer: all zero is a value of it.
    unsafe { std::mem::zeroed() }
}

/// A dense row-major view of a slice that kvc reads. The slice must have at least as many elements
/// as the shape; kvc reads the first ones.
#[derive(Clone, Copy)]
#[must_use = "a tensor is an argument of a call"]
pub struct Tensor<'a> {
    pub(crate) raw: kvc_sys::kvc_tensor,
    lifetime: PhantomData<&'a [u8]>,
}

impl<'a> Tensor<'a> {
    pub fn f32(data: &'a [f32], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F32,
            shape,
        )
    }

    /// Elements of IEEE half precision: the bits as `u16`, or `half::f16` with the feature `half`.
    pub fn f16<T: F16Element>(data: &'a [T], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F16,
            shape,
        )
    }

    /// Elements of bfloat16: the bits as `u16`, or `half::bf16` with the feature `half`.
    pub fn bf16<T: BF16Element>(data: &'a [T], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BF16,
            shape,
        )
    }

    /// A mask of one call: false hides.
    pub fn bool(data: &'a [bool], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BOOL,
            shape,
        )
    }

    /// A mask of one call, of bytes: 0 hides.
    pub fn bool_bytes(data: &'a [u8], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BOOL,
            shape,
        )
    }

    /// A mask of a pass of rows: 0 hides.
    pub fn i32(data: &'a [i32], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_I32,
            shape,
        )
    }

    /// Codes of [`DType::Q8_0`] and [`DType::INT8`].
    pub fn i8(data: &'a [i8], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_I8,
            shape,
        )
    }

    /// Codes of [`DType::Q4_0`] and [`DType::NF4`], two in a byte.
    pub fn u8(data: &'a [u8], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_U8,
            shape,
        )
    }

    /// Elements of [`DType::F8_E4M3`], as their bits.
    pub fn f8_e4m3(data: &'a [u8], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F8_E4M3,
            shape,
        )
    }

    /// Elements of [`DType::F8_E5M2`], as their bits.
    pub fn f8_e5m2(data: &'a [u8], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F8_E5M2,
            shape,
        )
    }

    /// Memory of the GPU `cuda:<id>`, dense in row-major order.
    ///
    /// # Safety
    ///
    /// `data` is an address there with as many elements as the shape has, and they stay until the work of
    /// the call is done, which [`Device::synchronize`](crate::Device::synchronize) waits for.
    pub unsafe fn on_gpu(
        id: i32,
        dtype: DType,
        data: *const c_void,
        shape: &[usize],
    ) -> Result<Tensor<'a>> {
        Ok(Tensor {
            raw: view_on_gpu(id, dtype, data as *mut c_void, shape)?,
            lifetime: PhantomData,
        })
    }

    // The C struct has one pointer for reading and writing; kvc only reads through this one.
    fn new(data: *mut c_void, length: usize, dtype: u32, shape: &[usize]) -> Result<Tensor<'a>> {
        Ok(Tensor {
            raw: view(data, length, dtype, shape)?,
            lifetime: PhantomData,
        })
    }

    /// `raw` must view memory that nobody writes to while 'a lasts.
    pub(crate) fn of_view(raw: kvc_sys::kvc_tensor) -> Tensor<'a> {
        Tensor {
            raw,
            lifetime: PhantomData,
        }
    }
}

// A tensor is used like the slice that it is a view of: shared here, exclusive in TensorMut.
unsafe impl Send for Tensor<'_> {}
unsafe impl Sync for Tensor<'_> {}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("Tensor", &self.raw, f)
    }
}

/// Prints element type and shape, without the address.
pub(crate) fn describe(
    name: &str,
    tensor: &kvc_sys::kvc_tensor,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.debug_struct(name)
        .field("dtype", &DType(tensor.dtype))
        .field("shape", &&tensor.shape[..tensor.ndim as usize])
        .finish_non_exhaustive()
}

/// A dense row-major view of a slice that kvc writes. The slice must have at least as many elements
/// as the shape; kvc writes the first ones.
#[must_use = "a tensor is an argument of a call"]
pub struct TensorMut<'a> {
    pub(crate) raw: kvc_sys::kvc_tensor,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> TensorMut<'a> {
    pub fn f32(data: &'a mut [f32], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F32,
            shape,
        )
    }

    /// Elements of IEEE half precision: the bits as `u16`, or `half::f16` with the feature `half`.
    pub fn f16<T: F16Element>(data: &'a mut [T], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F16,
            shape,
        )
    }

    /// Elements of bfloat16: the bits as `u16`, or `half::bf16` with the feature `half`.
    pub fn bf16<T: BF16Element>(data: &'a mut [T], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BF16,
            shape,
        )
    }

    /// For [`Layers::mask`](crate::Layers::mask). kvc writes 1 and 0, which are true and false.
    pub fn bool(data: &'a mut [bool], shape: &[usize]) -> Result<TensorMut<'a>> {
        let bytes = data.as_mut_ptr() as *mut c_void;
        TensorMut::new(bytes, data.len(), kvc_sys::KVC_BOOL, shape)
    }

    /// Codes of [`DType::Q8_0`] and [`DType::INT8`].
    pub fn i8(data: &'a mut [i8], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_I8,
            shape,
        )
    }

    /// Codes of [`DType::Q4_0`] and [`DType::NF4`], two in a byte.
    pub fn u8(data: &'a mut [u8], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_U8,
            shape,
        )
    }

    /// Elements of [`DType::F8_E4M3`], as their bits.
    pub fn f8_e4m3(data: &'a mut [u8], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F8_E4M3,
            shape,
        )
    }

    /// Elements of [`DType::F8_E5M2`], as their bits.
    pub fn f8_e5m2(data: &'a mut [u8], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F8_E5M2,
            shape,
        )
    }

    /// Memory of the GPU `cuda:<id>`, dense in row-major order.
    ///
    /// # Safety
    ///
    /// As of [`Tensor::on_gpu`], and nobody else reads or writes the elements until the work is done.
    pub unsafe fn on_gpu(
        id: i32,
        dtype: DType,
        data: *mut c_void,
        shape: &[usize],
    ) -> Result<TensorMut<'a>> {
        Ok(TensorMut {
            raw: view_on_gpu(id, dtype, data, shape)?,
            lifetime: PhantomData,
        })
    }

    fn new(data: *mut c_void, length: usize, dtype: u32, shape: &[usize]) -> Result<TensorMut<'a>> {
        Ok(TensorMut {
            raw: view(data, length, dtype, shape)?,
            lifetime: PhantomData,
        })
    }

    /// Returns the same view for one more call, because a call consumes its `TensorMut`.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut {
            raw: self.raw,
            lifetime: PhantomData,
        }
    }
}

unsafe impl Send for TensorMut<'_> {}
unsafe impl Sync for TensorMut<'_> {}

impl fmt::Debug for TensorMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("TensorMut", &self.raw, f)
    }
}
