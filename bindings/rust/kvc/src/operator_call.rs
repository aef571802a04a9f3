use crate::bit_sets::{Features, Modes};
use crate::error::{check, Result};
use crate::stored::CodesView;
use crate::tensor::{describe, empty, DType, TensorMut};
use crate::view::{element_bytes, extents, first_element, row_at, strides, View};
use kvc_sys as sys;
use std::fmt;
use std::marker::PhantomData;
use std::os::raw::c_void;
use std::slice;

/// One call of an [`AttentionOperator`](crate::AttentionOperator): what it reads and what it must write.
///
/// Tokens are numbered from 0. In passes of rows and without a cache they are those of all rows, `q_len`
/// of each; `batch` is the number of rows then, and else 0. `columns` are those of
/// [`Layers::history`](crate::Layers::history): cells in a pass over a list of tokens, the columns of a
/// row elsewhere. [`OperatorCall::cell`] is where a token finds a column in K and V.
#[derive(Debug)]
#[non_exhaustive]
pub struct OperatorCall<'a> {
    pub mode: Modes,
    /// What this call needs.
    pub features: Features,
    pub layer: i32,
    pub n_tokens: usize,
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    /// Rows of the batch; 0: tokens are a list.
    pub batch: usize,
    pub columns: usize,
    pub scale: f32,
    /// 0: none
    pub softcap: f32,
    /// 0: no dropout in this call
    pub dropout_prob: f32,
    /// `1 / (1 - dropout_prob)`
    pub keep_factor: f32,
    /// For [`dropout_mask`](crate::dropout_mask).
    pub dropout_seed: u64,
    /// Settings of [`OperatorDesc`](crate::OperatorDesc); 0, here and below: the operator's own.
    pub block_q: i32,
    pub block_k: i32,
    pub block_b: i32,
    pub stretches: i32,
    /// `[n_q_heads]` of ALiBi.
    pub slopes: Option<&'a [f32]>,
    /// `[n_q_heads]`; `None` too where the call leaves them out.
    pub sinks: Option<&'a [f32]>,
    /// Queries, by token and query head.
    pub q: View<'a>,
    /// Keys, by cell and KV head, as [`Layers::get_codes`](crate::Layers::get_codes) lends them.
    pub k: CodesView<'a>,
    pub v: CodesView<'a>,
    pub bias: Option<Columns<'a>>,
    /// The mask that the caller brought. [`OperatorCall::call_mask`] has the cache's rules, too.
    pub mask: Option<Columns<'a>>,
    /// `[n_tokens]` Positions of the queries; -1: padding.
    pub position: &'a [i32],
    /// `[n_tokens]` Sequences of the queries; [`PADDING`](crate::PADDING): the library writes the row.
    pub sequence: &'a [i32],
    /// To be written: outputs, by token and query head.
    pub out: ViewMut<'a>,
    /// To be written, F32: one number, by token and query head.
    pub lse: Option<ViewMut<'a>>,
    /// To be written, F32: `columns` numbers, by token and query head.
    pub weights: Option<ViewMut<'a>>,
    raw: &'a sys::kvc_operator_call,
}

impl<'a> OperatorCall<'a> {
    /// # Safety
    ///
    /// The library is calling the operator with `raw`, and 'a ends before the operator returns.
    pub(crate) unsafe fn new(raw: &'a sys::kvc_operator_call) -> OperatorCall<'a> {
        let (n_tokens, n_q_heads) = (raw.n_tokens as usize, raw.n_q_heads as usize);
        let k = read(raw.k);
        let columns = match *extents(&k) {
            [_, columns, _, _] | [columns, _, _] => columns,
            _ => 0,
        };
        let of_columns = |tensor: *const sys::kvc_tensor| {
            tensor.as_ref().map(|raw| Columns {
                raw: tokens_first(*raw),
                n_q_heads,
                lifetime: PhantomData,
            })
        };
        let written = |raw| ViewMut {
            raw,
            lifetime: PhantomData,
        };
        OperatorCall {
            mode: Modes(raw.mode),
            features: Features(raw.features),
            layer: raw.layer,
            n_tokens,
            n_q_heads,
            n_kv_heads: raw.n_kv_heads as usize,
            batch: raw.batch as usize,
            columns,
            scale: raw.scale,
            softcap: raw.softcap,
            dropout_prob: raw.dropout_prob,
            keep_factor: raw.keep_factor,
            dropout_seed: raw.dropout_seed,
            block_q: raw.block_q,
            block_k: raw.block_k,
            block_b: raw.block_b,
            stretches: raw.stretches,
            slopes: array(raw.slopes, n_q_heads),
            sinks: array(raw.sinks, n_q_heads),
            q: View::new(read(raw.q)),
            k: CodesView::new(k, read(raw.k_scales)),
            v: CodesView::new(read(raw.v), read(raw.v_scales)),
            bias: of_columns(raw.bias),
            mask: of_columns(raw.mask),
            position: array(raw.position, n_tokens).unwrap_or(&[]),
            sequence: array(raw.sequence, n_tokens).unwrap_or(&[]),
            out: written(read(raw.out)),
            lse: raw.lse.as_ref().map(|raw| written(one_number(*raw))),
            weights: raw.weights.as_ref().map(|raw| written(tokens_first(*raw))),
            raw,
        }
    }

    /// Returns the cell of K and V in which a token finds a column.
    pub fn cell(&self, token: usize, column: usize) -> usize {
        match self.batch {
            0 => column,
            batch => token / (self.n_tokens / batch) * self.columns + column,
        }
    }

    /// Writes what the tokens see, the mask of the call included and its bias not, `into` [n_tokens,
    /// columns]: true and false, or, as F32 or F16, 0 and minus infinity. NOT_SUPPORTED: the call's mask
    /// differs from head to head, so read [`OperatorCall::mask`].
    pub fn call_mask(&self, into: TensorMut<'_>) -> Result<()> {
        let mut into = into.raw;
        if let ([n_tokens, columns], 1..) = (extents(&into), self.batch) {
            if *n_tokens == self.n_tokens {
                let q_len = (self.n_tokens / self.batch) as i64;
                let columns = *columns as i64;
                into.ndim = 4;
                into.shape[..4].copy_from_slice(&[self.batch as i64, 1, q_len, columns]);
                let per_row = q_len * columns; // a TensorMut is dense
                into.strides[..4].copy_from_slice(&[per_row, per_row, columns, 1]);
            }
        }
        check(unsafe { sys::kvc_call_mask(self.raw, &mut into) })
    }

    /// Writes the positions that the columns have for one sequence, as many as `position` is long: -1
    /// where no query of it sees the column. A cell may have one position for one sequence and another
    /// one for another.
    pub fn call_positions(&self, sequence: i32, position: &mut [i32]) -> Result<()> {
        let capacity = crate::batch::count("position", position.len().min(self.columns))?;
        let into = position.as_mut_ptr();
        check(unsafe { sys::kvc_call_positions(self.raw, sequence, capacity, into) })
    }
}

unsafe fn array<'a, T>(first: *const T, n: usize) -> Option<&'a [T]> {
    (!first.is_null()).then(|| slice::from_raw_parts(first, n))
}

/// Returns a tensor of a call; an empty one where there is none.
unsafe fn read(tensor: *const sys::kvc_tensor) -> sys::kvc_tensor {
    tensor.as_ref().map_or_else(empty, |tensor| *tensor)
}

/// [heads, tokens, columns] or [batch, heads, q_len, columns] with heads behind the tokens.
fn tokens_first(mut raw: sys::kvc_tensor) -> sys::kvc_tensor {
    let heads = raw.ndim as usize - 3;
    raw.shape.swap(heads, heads + 1);
    raw.strides.swap(heads, heads + 1);
    raw
}

/// [tokens, heads] with one more dimension, of one number.
fn one_number(mut raw: sys::kvc_tensor) -> sys::kvc_tensor {
    let last = raw.ndim as usize;
    raw.shape[last] = 1;
    raw.strides[last] = 1;
    raw.ndim += 1;
    raw
}

/// A bias or a mask of a call, by token, query head and column.
pub struct Columns<'a> {
    raw: sys::kvc_tensor,
    n_q_heads: usize,
    lifetime: PhantomData<&'a [u8]>,
}

// Shared slices of the caller's.
unsafe impl Send for Columns<'_> {}
unsafe impl Sync for Columns<'_> {}

impl fmt::Debug for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("Columns", &self.raw, f)
    }
}

impl Columns<'_> {
    pub fn dtype(&self) -> DType {
        DType(self.raw.dtype)
    }

    /// [n_tokens, heads, columns], of rows [batch, q_len, heads, columns]. There may be fewer heads than
    /// query heads: each is for as many of them.
    pub fn shape(&self) -> &[usize] {
        extents(&self.raw)
    }

    /// In elements; 0 where it was broadcast.
    pub fn strides(&self) -> &[usize] {
        strides(&self.raw)
    }

    /// Returns the address of the first element, for kernels of your own.
    pub fn as_ptr(&self) -> *const c_void {
        first_element(&self.raw) as *const c_void
    }

    /// Returns one number, or None unless they are F32. Panics outside the shape.
    pub fn f32(&self, token: usize, head: usize, column: usize) -> Option<f32> {
        unsafe { self.element(token, head, column, &[DType::F32]) }
    }

    /// Returns the bits of one number, or None unless they are F16 or BF16. Panics outside the shape.
    pub fn bits(&self, token: usize, head: usize, column: usize) -> Option<u16> {
        unsafe { self.element(token, head, column, &[DType::F16, DType::BF16]) }
    }

    /// Returns whether a mask shows a column, or None unless it is BOOL. Panics outside the shape.
    pub fn bool(&self, token: usize, head: usize, column: usize) -> Option<bool> {
        let byte: Option<u8> = unsafe { self.element(token, head, column, &[DType::BOOL]) };
        byte.map(|byte| byte != 0)
    }

    /// T must be a type for the elements of each of `types`.
    unsafe fn element<T: Copy>(
        &self,
        token: usize,
        head: usize,
        column: usize,
        types: &[DType],
    ) -> Option<T> {
        if !types.contains(&self.dtype()) {
            return None;
        }
        let (shape, strides) = (self.shape(), self.strides());
        assert!(
            head < self.n_q_heads,
            "head {head} is outside {} query heads",
            self.n_q_heads
        );
        let of_group = head * shape[shape.len() - 2] / self.n_q_heads;
        let (row, n) = row_at(&self.raw, token, of_group);
        assert!(column < n, "column {column} is outside {shape:?}");
        let before = column * strides[strides.len() - 1] * element_bytes(&self.raw);
        Some(*(row.wrapping_add(before) as *const T))
    }
}

/// What an operator writes, by token and query head: rows of numbers.
pub struct ViewMut<'a> {
    raw: sys::kvc_tensor,
    lifetime: PhantomData<&'a mut [u8]>,
}

// It stands for an exclusive slice of the caller's.
unsafe impl Send for ViewMut<'_> {}
unsafe impl Sync for ViewMut<'_> {}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("ViewMut", &self.raw, f)
    }
}

impl ViewMut<'_> {
    pub fn dtype(&self) -> DType {
        DType(self.raw.dtype)
    }

    /// [n_tokens, n_q_heads, numbers of a row], of rows [batch, q_len, …].
    pub fn shape(&self) -> &[usize] {
        extents(&self.raw)
    }

    /// In elements.
    pub fn strides(&self) -> &[usize] {
        strides(&self.raw)
    }

    /// Returns the address of the first element, for kernels of your own.
    pub fn as_mut_ptr(&mut self) -> *mut c_void {
        first_element(&self.raw) as *mut c_void
    }

    /// Returns one row, or None unless it holds F32. Panics outside the shape.
    pub fn f32(&mut self, token: usize, head: usize) -> Option<&mut [f32]> {
        unsafe { self.row(token, head, &[DType::F32]) }
    }

    /// Returns the bits of one row, or None unless it holds F16 or BF16. Panics outside the shape.
    pub fn bits(&mut self, token: usize, head: usize) -> Option<&mut [u16]> {
        unsafe { self.row(token, head, &[DType::F16, DType::BF16]) }
    }

    /// T must be a type for the elements of each of `types`.
    unsafe fn row<T>(&mut self, token: usize, head: usize, types: &[DType]) -> Option<&mut [T]> {
        if !types.contains(&self.dtype()) {
            return None;
        }
        let (first, n) = row_at(&self.raw, token, head);
        Some(slice::from_raw_parts_mut(first as *mut T, n))
    }
}
