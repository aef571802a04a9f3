use crate::batch::count;
use crate::cache::Cache;
use crate::descriptors::constants;
use crate::error::{check, Error, Result, Status};
use crate::pass::Pass;
use crate::tensor::Tensor;
use kvc_sys as sys;
use std::ptr;

/// The tokens of a pass of rows, for [`Cache::begin_rows`]. The default: every row takes `q_len`
/// tokens, each of which sees what its row holds up to itself.
///
/// A batch has [`CacheDesc::max_sequences`](crate::CacheDesc::max_sequences) rows, and row `b` is
/// sequence `b`. See `kvc/rows.h`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowBatch<'a> {
    /// `[batch]` The tokens that each row takes, 0 … q_len: the first ones of its q_len; the others are
    /// padding.
    pub valid: Option<&'a [i32]>,
    /// A [`Tensor::bool`] or [`Tensor::i32`] (0 hides) that holds for this pass. Of transformer caches
    /// [batch, n] or [batch, 1, q_len, n], a column per position, which reaches at least as far as each
    /// row will; columns behind it are not hidden. Of lightning caches [batch, q_len].
    pub attention_mask: Option<Tensor<'a>>,
    /// `[batch * q_len]` Tokens of a row with the same type, 0 apart, see each other whatever their
    /// order and distance. Transformer caches.
    pub token_types: Option<&'a [i32]>,
    /// Every token also sees later ones of its row: [`Layers::set_causal`](crate::Layers::set_causal).
    /// Transformer caches.
    pub not_causal: bool,
    /// `valid` is read off `attention_mask` [batch, n]: of a row's new columns those that it shows come
    /// first, and as many tokens count.
    pub postpadded: bool,
    /// Only q_len counts; nothing is planned or stored, as by [`Cache::begin_reserve`].
    pub reserve: bool,
}

struct RawBatch {
    flags: u32,
    valid: *const i32,
    attention_mask: *const sys::kvc_tensor,
    token_types: *const i32,
}

impl RowBatch<'_> {
    /// The library is not told how long arrays are, so their lengths are compared here.
    fn raw(&self, n_rows: i32, q_len: i32) -> Result<RawBatch> {
        let flag = |set, bit| if set { bit } else { 0 };
        let n_rows = n_rows as usize;
        let n_tokens = n_rows * usize::try_from(q_len).unwrap_or(0);
        let mask = self.attention_mask.as_ref();
        Ok(RawBatch {
            flags: flag(self.not_causal, sys::KVC_ROWS_NOT_CAUSAL)
                | flag(self.postpadded, sys::KVC_ROWS_POSTPADDED)
                | flag(self.reserve, sys::KVC_ROWS_RESERVE),
            valid: constants("valid", self.valid, n_rows, "row")?,
            attention_mask: mask.map_or(ptr::null(), |mask| &mask.raw),
            token_types: constants("token_types", self.token_types, n_tokens, "token")?,
        })
    }
}

impl Cache {
    /// Opens a pass of `q_len` tokens in every row of a batch, 1 … max_batch / max_sequences, for
    /// transformer and lightning caches and wrappers of them. Dropping the pass aborts it.
    ///
    /// In such a pass tensors have two dimensions in the place of the tokens: K and V are [batch, q_len,
    /// KV heads, head size], queries and outputs [batch, q_len, query heads, head size], the
    /// log-sum-exp [batch, q_len, query heads], bias, mask and weights of an extra [batch, query heads,
    /// q_len, columns]. Token `i` of row `b` has the number `b * q_len + i`, for
    /// [`Layers::set_causal`](crate::Layers::set_causal). Padding is not read, and its outputs are 0.
    ///
    /// Two prompts of different lengths, and a token of each:
    ///
    /// ```
    /// use kvc::{Cache, CacheDesc, Device, Kind, RowBatch, Tensor, TensorMut, TransformerDesc};
    /// # fn main() -> kvc::Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let desc = CacheDesc {
    ///     n_layers: 1, n_kv_heads: 2, head_dim_k: 64, max_sequences: 2, capacity: 1024,
    ///     max_batch: 2 * 8, // 8 tokens of each row
    ///     ..Default::default()
    /// };
    /// let mut cache = Cache::new(&device, &desc, &Kind::Transformer(TransformerDesc::default()))?;
    /// let (k, v, q) = (vec![0.5; 2 * 8 * 128], vec![1.0; 2 * 8 * 128], vec![0.25; 2 * 8 * 256]);
    /// let mut out = vec![0.0; 2 * 8 * 256];
    ///
    /// let lengths = [8, 5];
    /// for (q_len, valid) in [(8, Some(&lengths[..])), (1, None)] {
    ///     let (shape, q_shape) = ([2, q_len, 2, 64], [2, q_len, 4, 64]);
    ///     let batch = RowBatch { valid, ..Default::default() };
    ///     let mut pass = cache.begin_rows(q_len as i32, &batch)?;
    ///     pass.put(0, Tensor::f32(&k, &shape)?, Tensor::f32(&v, &shape)?)?;
    ///     let into = TensorMut::f32(&mut out, &q_shape)?;
    ///     pass.attention(0, Tensor::f32(&q, &q_shape)?, into)?;
    ///     pass.commit()?;
    /// }
    /// let mut index = [0; 2];
    /// cache.rows_query(0, Some(&mut index), None)?;
    /// assert_eq!(index, [9, 6]); // where the rows continue
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_rows(&mut self, q_len: i32, batch: &RowBatch<'_>) -> Result<Pass<'_>> {
        let (handle, raw) = (self.handle, batch.raw(self.max_sequences, q_len)?);
        let (valid, mask, types) = (raw.valid, raw.attention_mask, raw.token_types);
        let stream = ptr::null_mut();
        check(unsafe {
            sys::kvc_begin_rows(handle, q_len, raw.flags, valid, mask, types, stream)
        })?;
        let n_tokens = self.max_sequences * q_len; // at most max_batch
        Ok(Pass::new(self, n_tokens))
    }

    /// Returns the error that [`Cache::begin_rows`] would return now. Changes nothing.
    pub fn fits_rows(&self, q_len: i32, batch: &RowBatch<'_>) -> Result<()> {
        let raw = batch.raw(self.max_sequences, q_len)?;
        let (valid, mask, types) = (raw.valid, raw.attention_mask, raw.token_types);
        check(unsafe { sys::kvc_fits_rows(self.handle, q_len, raw.flags, valid, mask, types) })
    }

    /// Writes index and starts of as many rows as the slices are long, from `row_begin` on: where each
    /// continues, and the position below which it is padding. `None`: not wanted. In a pass, as if the
    /// pass were committed.
    pub fn rows_query(
        &self,
        row_begin: i32,
        index: Option<&mut [i32]>,
        starts: Option<&mut [i32]>,
    ) -> Result<()> {
        let n = rows_of(index.as_deref(), starts.as_deref())?;
        let index = index.map_or(ptr::null_mut(), <[i32]>::as_mut_ptr);
        let starts = starts.map_or(ptr::null_mut(), <[i32]>::as_mut_ptr);
        check(unsafe { sys::kvc_rows_query(self.handle, row_begin, n, index, starts) })
    }

    /// Sets index and starts of as many rows as the slices are long, from `row_begin` on: all of them
    /// or none. `None`: they stay. A row goes back only, and what lies at or behind its new index is
    /// dropped; an empty row of a ring may go anywhere. Starts are 0 … capacity, of a ring any position.
    /// In a lightning cache an index is a label of time, and starts must be 0.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn f(cache: &mut Cache) -> Result<()> {
    /// // The prompts have padding on their left: row 0 three tokens of it, row 1 none.
    /// cache.rows_set(0, None, Some(&[3, 0]))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn rows_set(
        &mut self,
        row_begin: i32,
        index: Option<&[i32]>,
        starts: Option<&[i32]>,
    ) -> Result<()> {
        let n = rows_of(index, starts)?;
        let index = index.map_or(ptr::null(), <[i32]>::as_ptr);
        let starts = starts.map_or(ptr::null(), <[i32]>::as_ptr);
        check(unsafe { sys::kvc_rows_set(self.handle, row_begin, n, index, starts) })
    }

    /// Puts all rows of another cache in the place of those from `slot` on: what they hold, byte for
    /// byte, index and starts. Both caches store in the same way; capacity may differ except in rings,
    /// and so may max_batch. So a prompt is processed in a cache of one row and moves to a free row of
    /// the batch.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn f(batch: &mut Cache, prompt: &Cache, free_row: i32) -> Result<()> {
    /// batch.insert(prompt, free_row)
    /// # }
    /// ```
    pub fn insert(&mut self, other: &Cache, slot: i32) -> Result<()> {
        check(unsafe { sys::kvc_insert(self.handle, other.handle, slot) })
    }
}

/// Returns the number of rows that two arrays are of.
fn rows_of(index: Option<&[i32]>, starts: Option<&[i32]>) -> Result<i32> {
    match (index.map(<[i32]>::len), starts.map(<[i32]>::len)) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("index and starts have {a} and {b} elements");
            Err(Error::new(Status::INVALID_ARGUMENT, message))
        }
        (a, b) => count("index and starts", a.or(b).unwrap_or(0)),
    }
}
