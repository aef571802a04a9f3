use crate::batch::{count, same_length};
use crate::cache::Cache;
use crate::error::{check, Result};
use crate::tensor::{empty, Tensor, TensorMut, View};
use kvc_sys as sys;
use std::mem::size_of;
use std::ops::{Deref, Range};
use std::ptr;

/// What one attention call adds to the constants of the model, and what it returns besides the
/// output. `None`: not wanted. Columns are the cells that [`Pass::history`] returns. Bias and mask
/// are broadcast: an extent may be 1, and leading dimensions may be missing.
#[derive(Debug, Default)]
pub struct AttentionExtra<'a> {
    /// [query heads, n tokens, history], added to the scores; minus infinity hides.
    pub bias: Option<Tensor<'a>>,
    /// [query heads, n tokens, history], a [`Tensor::bool`]: false hides. It can hide more than
    /// the cache's own rules do, never less.
    pub mask: Option<Tensor<'a>>,
    /// [query heads, n tokens, history] f32, written: the weight of each value. For analysis, not
    /// for speed.
    pub weights: Option<TensorMut<'a>>,
    /// [n tokens, query heads] f32, written: the log of the sum of exponentials over visible keys.
    pub lse: Option<TensorMut<'a>>,
}

impl AttentionExtra<'_> {
    /// The pointers are valid as long as the borrow of `self`.
    fn raw(&mut self) -> sys::kvc_attention_extra {
        let read = |tensor: &Option<Tensor<'_>>| -> *const sys::kvc_tensor {
            tensor.as_ref().map_or(ptr::null(), |tensor| &tensor.raw)
        };
        let written = |tensor: &mut Option<TensorMut<'_>>| -> *mut sys::kvc_tensor {
            tensor
                .as_mut()
                .map_or(ptr::null_mut(), |tensor| &mut tensor.raw)
        };
        sys::kvc_attention_extra {
            struct_size: size_of::<sys::kvc_attention_extra>() as u32,
            flags: 0,
            bias: read(&self.bias),
            mask: read(&self.mask),
            weights: written(&mut self.weights),
            lse: written(&mut self.lse),
            dropout_seed: 0,
            first_position: ptr::null(),
            constants: ptr::null(),
            alibi_slopes: ptr::null(),
            sinks: ptr::null(),
        }
    }
}

/// An open pass. It borrows its cache, and its `Deref` gives the cache's methods that only read.
/// A pass that is dropped without a commit is aborted.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # fn f(cache: &mut kvc::Cache) -> kvc::Result<()> {
/// cache.begin(&[0], &[0])?; // would be aborted at once
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a pass that is dropped is aborted"]
pub struct Pass<'a> {
    pub(crate) cache: &'a mut Cache,
    open: bool,
}

impl Deref for Pass<'_> {
    type Target = Cache;
    fn deref(&self) -> &Cache {
        self.cache
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.open {
            unsafe { sys::kvc_abort(self.cache.handle) };
        }
    }
}

impl<'a> Pass<'a> {
    pub(crate) fn new(cache: &'a mut Cache) -> Pass<'a> {
        Pass { cache, open: true }
    }

    // ---- Layers --------------------------------------------------------------------------------

    /// Stores one layer's keys and values [n tokens, KV heads, head size]. In an encoder cache they
    /// are [length, …] of the only input that the pass carries.
    pub fn put(&mut self, layer: i32, k: Tensor<'_>, v: Tensor<'_>) -> Result<()> {
        check(unsafe { sys::kvc_put(self.cache.handle, layer, &k.raw, &v.raw) })
    }

    /// Computes attention of the queries [n tokens, query heads, head size] and writes it to `out`.
    /// The layer must have been put in this pass; in an encoder cache, for each input that the pass
    /// carries and does not share.
    pub fn attention(&mut self, layer: i32, q: Tensor<'_>, mut out: TensorMut<'_>) -> Result<()> {
        let (handle, none) = (self.cache.handle, ptr::null());
        check(unsafe { sys::kvc_attention(handle, layer, &q.raw, &mut out.raw, none) })
    }

    /// [`Pass::attention`] with the tensors of `extra`.
    pub fn attention_with(
        &mut self,
        layer: i32,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut extra: AttentionExtra<'_>,
    ) -> Result<()> {
        let (handle, extra) = (self.cache.handle, extra.raw());
        check(unsafe { sys::kvc_attention(handle, layer, &q.raw, &mut out.raw, &extra) })
    }

    /// [`Pass::put`] and [`Pass::attention`] in one call. All arguments are checked before K and V
    /// are stored.
    pub fn put_attention(
        &mut self,
        layer: i32,
        k: Tensor<'_>,
        v: Tensor<'_>,
        q: Tensor<'_>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.put_attention_with(layer, k, v, q, out, AttentionExtra::default())
    }

    /// [`Pass::put_attention`] with the tensors of `extra`.
    pub fn put_attention_with(
        &mut self,
        layer: i32,
        k: Tensor<'_>,
        v: Tensor<'_>,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut extra: AttentionExtra<'_>,
    ) -> Result<()> {
        let (handle, extra) = (self.cache.handle, extra.raw());
        let (k, v, q, out) = (&k.raw, &v.raw, &q.raw, &mut out.raw);
        check(unsafe { sys::kvc_put_attention(handle, layer, k, v, q, out, &extra) })
    }

    /// Replaces the tokens of the pass, by index, that also see later tokens of their sequence.
    pub fn set_causal(&mut self, except: &[i32]) -> Result<()> {
        let n = count("except", except.len())?;
        check(unsafe { sys::kvc_set_causal(self.cache.handle, n, except.as_ptr()) })
    }

    // ---- Reading, for kernels of your own ------------------------------------------------------

    /// Returns views of a layer's keys and values over the cells that the pass may see. Apply
    /// [`Pass::mask`] before you multiply: cells that it hides may hold anything.
    pub fn get(&mut self, layer: i32) -> Result<(View<'_>, View<'_>)> {
        let (mut k, mut v) = (empty(), empty());
        check(unsafe { sys::kvc_get(self.cache.handle, layer, &mut k, &mut v) })?;
        Ok((View::new(k), View::new(v)))
    }

    /// Returns the cells that the columns of views, masks, biases and weights of a layer stand for,
    /// as [`Cache::runs`] numbers them. [`Pass::get`] may change the range.
    pub fn history(&mut self, layer: i32) -> Result<Range<i32>> {
        let (mut first, mut n) = (0, 0);
        check(unsafe { sys::kvc_history(self.cache.handle, layer, &mut first, &mut n) })?;
        Ok(first..first + n)
    }

    /// Returns the shape of a layer's mask: [n tokens, history].
    pub fn mask_shape(&mut self, layer: i32) -> Result<[usize; 2]> {
        let mut shape = empty();
        check(unsafe { sys::kvc_mask(self.cache.handle, layer, &mut shape) })?;
        Ok([shape.shape[0] as usize, shape.shape[1] as usize])
    }

    /// Writes the mask of a layer's views: true where a token of the pass sees a cell and false
    /// elsewhere, or, as f32 or f16, 0 and minus infinity.
    pub fn mask(&mut self, layer: i32, mut into: TensorMut<'_>) -> Result<()> {
        check(unsafe { sys::kvc_mask(self.cache.handle, layer, &mut into.raw) })
    }

    /// [`Cache::gather`] as if the pass were committed. Tokens of a layer that the pass has not put
    /// read as zeros.
    pub fn gather(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.cache.gather(layer, sequence, k, v)
    }

    /// [`Cache::gather_transposed`] as if the pass were committed. Tokens of a layer that the pass
    /// has not put read as zeros.
    pub fn gather_transposed(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.cache.gather_transposed(layer, sequence, k, v)
    }

    // ---- The end -------------------------------------------------------------------------------

    /// Keeps the pass. In a layer that was not put its tokens hold zeros.
    pub fn commit(mut self) -> Result<()> {
        check(unsafe { sys::kvc_commit(self.cache.handle) })?;
        self.open = false;
        Ok(())
    }

    /// Keeps the first `keep` tokens of each named sequence in this pass; sequences that are not
    /// named keep all. If this returns an error, the pass is aborted.
    pub fn commit_prefix(mut self, sequences: &[i32], keep: &[i32]) -> Result<()> {
        let n = same_length("sequences and keep", sequences.len(), keep.len())?;
        let (sequences, keep) = (sequences.as_ptr(), keep.as_ptr());
        check(unsafe { sys::kvc_commit_prefix(self.cache.handle, n, sequences, keep) })?;
        self.open = false;
        Ok(())
    }

    /// Discards the pass, as dropping it does: the cache is as it was before `begin`.
    pub fn abort(mut self) -> Result<()> {
        self.open = false;
        check(unsafe { sys::kvc_abort(self.cache.handle) })
    }
}
