use crate::tensor::{describe, DType, Tensor};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::raw::c_void;

/// What a layer stores for the cells that a pass may see: [history, n_kv_heads, elements of a row],
/// in passes of rows [batch, columns, n_kv_heads, elements of a row], where cell `row * columns +
/// column` is column `column` of a row of the batch. The row of one cell and head is its vector: its
/// numbers, its codes, or its scales. A view borrows what lends it, so it cannot outlive it.
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

    pub fn shape(&self) -> &[usize] {
        extents(&self.raw)
    }

    /// In elements.
    pub fn strides(&self) -> &[usize] {
        strides(&self.raw)
    }

    /// Returns the address of the first element, for kernels of your own.
    pub fn as_ptr(&self) -> *const c_void {
        first_element(&self.raw) as *const c_void
    }

    /// Returns some of the cells as an argument of a call: codes for
    /// [`Layers::put_codes`](crate::Layers::put_codes) of another cache, for example. Panics outside
    /// the shape, and if the view is one of rows of a batch.
    pub fn cells(&self, range: Range<usize>) -> Tensor<'_> {
        self.narrowed(3, &[range])
    }

    /// Returns some of the columns of some rows of a batch, as [`View::cells`] does. Panics outside the
    /// shape, and if the view is not one of rows of a batch.
    pub fn rows(&self, rows: Range<usize>, columns: Range<usize>) -> Tensor<'_> {
        self.narrowed(4, &[rows, columns])
    }

    /// Narrows the first dimensions to ranges.
    fn narrowed(&self, n_dims: usize, ranges: &[Range<usize>]) -> Tensor<'_> {
        let (shape, strides) = (self.shape(), self.strides());
        assert!(
            shape.len() == n_dims,
            "a view {shape:?} has not {n_dims} dimensions"
        );
        let mut raw = self.raw;
        for (i, range) in ranges.iter().enumerate() {
            assert!(
                range.start <= range.end && range.end <= shape[i],
                "{range:?} is outside dimension {i} of {shape:?}"
            );
            raw.byte_offset += (range.start * strides[i] * element_bytes(&raw)) as u64;
            raw.shape[i] = range.len() as i64;
        }
        Tensor::of_view(raw)
    }

    /// Returns the bytes of one row, whatever its element type. Panics outside the shape.
    pub fn bytes(&self, cell: usize, head: usize) -> &[u8] {
        let (first, n) = row_at(&self.raw, cell, head);
        unsafe { std::slice::from_raw_parts(first, n * element_bytes(&self.raw)) }
    }

    /// Returns one row, or None unless it holds F32. Panics outside the shape.
    pub fn f32(&self, cell: usize, head: usize) -> Option<&[f32]> {
        unsafe { self.row(cell, head, &[DType::F32]) }
    }

    /// Returns the bits of one row, or None unless it holds F16 or BF16. Panics outside the shape.
    pub fn bits(&self, cell: usize, head: usize) -> Option<&[u16]> {
        unsafe { self.row(cell, head, &[DType::F16, DType::BF16]) }
    }

    /// Returns one row, or None unless it holds I8: codes of Q8_0 and INT8. Panics outside the
    /// shape.
    pub fn i8(&self, cell: usize, head: usize) -> Option<&[i8]> {
        unsafe { self.row(cell, head, &[DType::I8]) }
    }

    /// Returns one row, or None unless it holds U8, codes of Q4_0 and NF4, or F8_E4M3 or F8_E5M2 (as
    /// bits). Panics outside the shape.
    pub fn u8(&self, cell: usize, head: usize) -> Option<&[u8]> {
        let types = [DType::U8, DType::F8_E4M3, DType::F8_E5M2];
        unsafe { self.row(cell, head, &types) }
    }

    /// Returns one row, or None unless it holds F16. Needs the feature `half`. Panics outside the
    /// shape.
    #[cfg(feature = "half")]
    pub fn f16(&self, cell: usize, head: usize) -> Option<&[half::f16]> {
        unsafe { self.row(cell, head, &[DType::F16]) }
    }

    /// Returns one row, or None unless it holds BF16. Needs the feature `half`. Panics outside the
    /// shape.
    #[cfg(feature = "half")]
    pub fn bf16(&self, cell: usize, head: usize) -> Option<&[half::bf16]> {
        unsafe { self.row(cell, head, &[DType::BF16]) }
    }

    /// T must be a type for the elements of each of `types`.
    unsafe fn row<T>(&self, cell: usize, head: usize, types: &[DType]) -> Option<&[T]> {
        if !types.contains(&self.dtype()) {
            return None;
        }
        let (first, n) = row_at(&self.raw, cell, head);
        Some(std::slice::from_raw_parts(first as *const T, n))
    }
}

// ---- Tensors that kvc fills in -------------------------------------------------------------------
//
// Their extents and strides are not negative, and their last dimension is dense.

/// Returns the extents of a tensor.
pub(crate) fn extents(raw: &kvc_sys::kvc_tensor) -> &[usize] {
    as_sizes(&raw.shape[..raw.ndim as usize])
}

/// Returns the strides of a tensor, in elements.
pub(crate) fn strides(raw: &kvc_sys::kvc_tensor) -> &[usize] {
    as_sizes(&raw.strides[..raw.ndim as usize])
}

fn as_sizes(numbers: &[i64]) -> &[usize] {
    const _: () = assert!(usize::BITS == i64::BITS, "kvc is for 64-bit systems");
    // Of the same size, and every pattern of bits is a number of both.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr() as *const usize, numbers.len()) }
}

pub(crate) fn first_element(raw: &kvc_sys::kvc_tensor) -> *mut u8 {
    (raw.data as *mut u8).wrapping_add(raw.byte_offset as usize)
}

/// An element type is code | bits << 8 | lanes << 16. No element is smaller than a byte.
pub(crate) fn element_bytes(raw: &kvc_sys::kvc_tensor) -> usize {
    ((raw.dtype >> 8 & 0xff) * (raw.dtype >> 16) / 8) as usize
}

/// Returns the address of the row of one cell (or token) and head, and its number of elements. Of a
/// batch of rows cells are counted row by row. Panics outside the shape.
pub(crate) fn row_at(raw: &kvc_sys::kvc_tensor, cell: usize, head: usize) -> (*mut u8, usize) {
    assert!(
        raw.device_type == kvc_sys::KVC_CPU,
        "the view lies on a device: read it there, by its address"
    );
    let (shape, strides) = (extents(raw), strides(raw));
    let (n_cells, before, n_before) = match *shape {
        [cells, _, _] => (cells, cell * strides[0], 1),
        [batch, columns, _, _] => {
            let (row, column) = (cell / columns.max(1), cell % columns.max(1));
            (batch * columns, row * strides[0] + column * strides[1], 2)
        }
        _ => panic!("a view {shape:?} has no cells and heads"),
    };
    assert!(
        cell < n_cells && head < shape[n_before],
        "cell {cell} and head {head} are outside {shape:?}"
    );
    let elements = before + head * strides[n_before];
    let first = first_element(raw).wrapping_add(elements * element_bytes(raw));
    (first, shape[n_before + 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::empty;

    #[test]
    fn rows_of_another_element_type_are_not_read() {
        let mut raw = empty();
        for dtype in [DType::Q8_0, DType::INT8, DType::BOOL, DType(0), DType(7)] {
            raw.dtype = dtype.0;
            let view = View::new(raw);
            assert_eq!(view.dtype(), dtype);
            assert!(view.f32(0, 0).is_none() && view.bits(0, 0).is_none());
            assert!(view.i8(0, 0).is_none() && view.u8(0, 0).is_none());
        }
        assert_eq!(
            format!("{:?} {:?}", DType::Q8_0, DType(7)),
            "Q8_0 DType(0x7)"
        );
    }
}
