use crate::tensor::{describe, DType, Tensor};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::raw::c_void;

/// What a layer stores for the cells that a pass may see: [history, n_kv_heads, elements of a row].
/// A row is the vector of one cell and head: its numbers, its codes, or its scales. A view borrows
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

    /// Returns some of the cells as an argument of a call: codes for
    /// [`Layers::put_codes`](crate::Layers::put_codes) of another cache, for example. Panics outside
    /// the shape.
    pub fn cells(&self, range: Range<usize>) -> Tensor<'_> {
        let (shape, strides) = (self.shape(), self.strides());
        assert!(
            range.start <= range.end && range.end <= shape[0],
            "cells {range:?} are outside {shape:?}"
        );
        let mut raw = self.raw;
        raw.byte_offset += (range.start * strides[0] * self.element_bytes()) as u64;
        raw.shape[0] = range.len() as i64;
        Tensor::of_view(raw)
    }

    /// Returns the bytes of one row, whatever its element type. Panics outside the shape.
    pub fn bytes(&self, cell: usize, head: usize) -> &[u8] {
        let (first, n) = self.row_at(cell, head);
        unsafe { std::slice::from_raw_parts(first, n * self.element_bytes()) }
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
        let (first, n) = self.row_at(cell, head);
        Some(std::slice::from_raw_parts(first as *const T, n))
    }

    /// Returns the address of a row and its number of elements.
    fn row_at(&self, cell: usize, head: usize) -> (*const u8, usize) {
        let (shape, strides) = (self.shape(), self.strides());
        assert!(
            cell < shape[0] && head < shape[1],
            "cell {cell} and head {head} are outside {shape:?}"
        );
        let before = cell * strides[0] + head * strides[1];
        let first = self.as_ptr() as *const u8;
        (first.wrapping_add(before * self.element_bytes()), shape[2])
    }

    /// An element type is code | bits << 8 | lanes << 16. No element is smaller than a byte.
    fn element_bytes(&self) -> usize {
        let dtype = self.raw.dtype;
        ((dtype >> 8 & 0xff) * (dtype >> 16) / 8) as usize
    }
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
