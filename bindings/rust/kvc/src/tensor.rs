use crate::error::{Error, Result, Status};
use std::fmt;
use std::marker::PhantomData;
use std::os::raw::c_void;

/// An element type of storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F32,
    F16,
    BF16,
}

impl DType {
    pub(crate) fn code(self) -> u32 {
        match self {
            DType::F32 => kvc_sys::KVC_F32,
            DType::F16 => kvc_sys::KVC_F16,
            DType::BF16 => kvc_sys::KVC_BF16,
        }
    }

    pub(crate) fn of(code: u32) -> DType {
        match code {
            kvc_sys::KVC_F16 => DType::F16,
            kvc_sys::KVC_BF16 => DType::BF16,
            _ => DType::F32,
        }
    }
}

fn view(
    data: *mut c_void,
    length: usize,
    dtype: u32,
    shape: &[usize],
) -> Result<kvc_sys::kvc_tensor> {
    // The library knows no lengths: a shape that reaches beyond the slice must not get that far.
    let product = shape
        .iter()
        .try_fold(1usize, |product, &extent| product.checked_mul(extent));
    if product != Some(length) {
        return Err(Error::new(
            Status::SHAPE,
            format!("shape {shape:?} does not fit a slice of {length}"),
        ));
    }
    let mut extents = [0i64; kvc_sys::KVC_MAX_DIMS];
    if shape.is_empty() || shape.len() > extents.len() {
        return Err(Error::new(
            Status::SHAPE,
            format!("{} dimensions", shape.len()),
        ));
    }
    for (extent, &wanted) in extents.iter_mut().zip(shape) {
        // With an extent of 0 beside it, any number passes the product.
        *extent = i64::try_from(wanted)
            .map_err(|_| Error::new(Status::OVERFLOW, format!("extent {wanted}")))?;
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

pub(crate) fn empty() -> kvc_sys::kvc_tensor {
    // A struct of integers and a pointer: all zero is a value of it.
    unsafe { std::mem::zeroed() }
}

/// A dense row-major view of a slice that kvc reads. The shape must have exactly as many elements as the slice.
#[derive(Clone, Copy)]
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

    /// Bits of IEEE half precision.
    pub fn f16(data: &'a [u16], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F16,
            shape,
        )
    }

    /// Bits of bfloat16.
    pub fn bf16(data: &'a [u16], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BF16,
            shape,
        )
    }

    /// A mask: true where a token may see a cell.
    pub fn bool(data: &'a [bool], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BOOL,
            shape,
        )
    }

    /// A mask of bytes: 0 hides, any other number does not.
    pub fn bool_bytes(data: &'a [u8], shape: &[usize]) -> Result<Tensor<'a>> {
        Tensor::new(
            data.as_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BOOL,
            shape,
        )
    }

    // The C struct has one pointer for reading and writing; through this one nothing is written.
    fn new(data: *mut c_void, length: usize, dtype: u32, shape: &[usize]) -> Result<Tensor<'a>> {
        Ok(Tensor {
            raw: view(data, length, dtype, shape)?,
            lifetime: PhantomData,
        })
    }
}

// kvc uses a tensor as the slice that it is a view of: shared here, exclusive in TensorMut.
unsafe impl Send for Tensor<'_> {}
unsafe impl Sync for Tensor<'_> {}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("Tensor", &self.raw, f)
    }
}

/// What a view is of, without its address.
fn describe(name: &str, tensor: &kvc_sys::kvc_tensor, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let known = DType::of(tensor.dtype);
    let dtype: &dyn fmt::Debug = match tensor.dtype {
        kvc_sys::KVC_BOOL => &"bool",
        _ => &known,
    };
    f.debug_struct(name)
        .field("dtype", dtype)
        .field("shape", &&tensor.shape[..tensor.ndim as usize])
        .finish_non_exhaustive()
}

/// A dense row-major view of a slice that kvc writes. The shape must have exactly as many elements as the slice.
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

    /// Bits of IEEE half precision.
    pub fn f16(data: &'a mut [u16], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_F16,
            shape,
        )
    }

    /// Bits of bfloat16.
    pub fn bf16(data: &'a mut [u16], shape: &[usize]) -> Result<TensorMut<'a>> {
        TensorMut::new(
            data.as_mut_ptr() as *mut c_void,
            data.len(),
            kvc_sys::KVC_BF16,
            shape,
        )
    }

    fn new(data: *mut c_void, length: usize, dtype: u32, shape: &[usize]) -> Result<TensorMut<'a>> {
        Ok(TensorMut {
            raw: view(data, length, dtype, shape)?,
            lifetime: PhantomData,
        })
    }

    /// The same view for one more call: calls take a `TensorMut` and keep it.
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

/// Keys or values of the cells that a pass may see: [history, n_kv_heads, head size]. It borrows the pass, so it cannot
/// outlive it.
pub struct View<'a> {
    raw: kvc_sys::kvc_tensor,
    lifetime: PhantomData<&'a [u8]>,
}

// The memory of a cache that cannot be called meanwhile: nobody writes to it.
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
        DType::of(self.raw.dtype)
    }

    pub fn shape(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.raw.shape[i] as usize)
    }

    /// In elements.
    pub fn strides(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.raw.strides[i] as usize)
    }

    /// For kernels of your own: where the first element lies.
    pub fn as_ptr(&self) -> *const c_void {
        (self.raw.data as *const u8).wrapping_add(self.raw.byte_offset as usize) as *const c_void
    }

    /// The vector of one cell and head; None when the view does not store f32. Panics outside the shape.
    pub fn f32(&self, cell: usize, head: usize) -> Option<&[f32]> {
        (self.dtype() == DType::F32).then(|| unsafe { self.row(cell, head) })
    }

    /// The vector of one cell and head as bits; None when the view stores f32. Panics outside the shape.
    pub fn bits(&self, cell: usize, head: usize) -> Option<&[u16]> {
        (self.dtype() != DType::F32).then(|| unsafe { self.row(cell, head) })
    }

    // T must be as large as the view's elements.
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
