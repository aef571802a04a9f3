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
    F8_E4M3 = KVC_F8_E4M3, "Reserved: storage of 8 bits without infinity.";
    F8_E5M2 = KVC_F8_E5M2, "Reserved: storage of 8 bits.";
    Q8_0 = KVC_Q8_0, "Reserved: storage in blocks of 32 8-bit codes with one f16 scale.";
    Q4_0 = KVC_Q4_0, "Reserved: storage in blocks of 32 4-bit codes with one f16 scale.";
    INT8 = KVC_INT8, "Reserved: storage of 8-bit codes with one f32 scale per vector.";
    NF4 = KVC_NF4, "Reserved: storage in blocks of 4-bit codes of a table with one f32 scale.";
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

    // The C struct has one pointer for reading and writing; kvc only reads through this one.
    fn new(data: *mut c_void, length: usize, dtype: u32, shape: &[usize]) -> Result<Tensor<'a>> {
        Ok(Tensor {
            raw: view(data, length, dtype, shape)?,
            lifetime: PhantomData,
        })
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
fn describe(name: &str, tensor: &kvc_sys::kvc_tensor, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// Keys or values of the cells that a pass may see: [history, n_kv_heads, head size]. It borrows
/// the pass, so it cannot outlive it.
#[must_use = "getting a view changes nothing that a caller sees"]
pub struct View<'a> {
    raw: kvc_sys::kvc_tensor,
    lifetime: PhantomData<&'a [u8]>,
}

// The view borrows its pass exclusively, so no call writes to the memory meanwhile.
unsafe impl Send for View<'_> {}
unsafe impl Sync for View<'_> {}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("View", &self.raw, f)
    }
}

impl<'a> View<'a> {
    pub(crate) fn new(raw: kvc_sys::kvc_tensor) -> View<'a> {
        View {
            raw,
            lifetime: PhantomData,
        }
    }

    pub fn dtype(&self) -> DType {
        DType(self.raw.dtype)
    }

    pub fn shape(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.raw.shape[i] as usize)
    }

    /// In elements.
    pub fn strides(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.raw.strides[i] as usize)
    }

    /// Returns the address of the first element, for kernels of your own.
    pub fn as_ptr(&self) -> *const c_void {
        (self.raw.data as *const u8).wrapping_add(self.raw.byte_offset as usize) as *const c_void
    }

    /// Returns the vector of one cell and head, or None unless the view stores F32. Panics outside
    /// the shape.
    pub fn f32(&self, cell: usize, head: usize) -> Option<&[f32]> {
        match self.dtype() {
            DType::F32 => Some(unsafe { self.row(cell, head) }),
            _ => None,
        }
    }

    /// Returns the bits of the vector of one cell and head, or None unless the view stores F16 or
    /// BF16. Panics outside the shape.
    pub fn bits(&self, cell: usize, head: usize) -> Option<&[u16]> {
        match self.dtype() {
            DType::F16 | DType::BF16 => Some(unsafe { self.row(cell, head) }),
            _ => None,
        }
    }

    /// Returns the vector of one cell and head, or None unless the view stores F16. Needs the
    /// feature `half`. Panics outside the shape.
    #[cfg(feature = "half")]
    pub fn f16(&self, cell: usize, head: usize) -> Option<&[half::f16]> {
        match self.dtype() {
            DType::F16 => Some(unsafe { self.row(cell, head) }),
            _ => None,
        }
    }

    /// Returns the vector of one cell and head, or None unless the view stores BF16. Needs the
    /// feature `half`. Panics outside the shape.
    #[cfg(feature = "half")]
    pub fn bf16(&self, cell: usize, head: usize) -> Option<&[half::bf16]> {
        match self.dtype() {
            DType::BF16 => Some(unsafe { self.row(cell, head) }),
            _ => None,
        }
    }

    // T must be the type of the view's elements.
    unsafe fn row<T>(&self, cell: usize, head: usize) -> &[T] {
        let (shape, strides) = (self.shape(), self.strides());
        assert!(
            cell < shape[0] && head < shape[1],
            "cell {cell} and head {head} are outside {shape:?}"
        );
        let first = (self.as_ptr() as *const T).add(cell * strides[0] + head * strides[1]);
        std::slice::from_raw_parts(first, shape[2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_unknown_storage_type_are_not_read() {
        let mut raw = empty();
        for dtype in [DType::Q8_0, DType::INT8, DType::BOOL, DType(0), DType(7)] {
            raw.dtype = dtype.0;
            let view = View::new(raw);
            assert_eq!(view.dtype(), dtype);
            assert!(view.f32(0, 0).is_none() && view.bits(0, 0).is_none());
        }
        assert_eq!(
            format!("{:?} {:?}", DType::Q8_0, DType(7)),
            "Q8_0 DType(0x7)"
        );
    }
}
