use crate::cache::{together, Cache};
use crate::error::{check, Result};
use crate::tensor::{empty, Tensor, TensorMut, View};
use kvc_sys as sys;
use std::mem::size_of;
use std::ops::{Deref, Range};
use std::ptr;

/// What one call of [`Pass::attention_with`] takes and gives beside `q` and `out`; `None`: not wanted. Columns are the cells
/// that [`Pass::history`] names. Bias and mask are broadcast: an extent may be 1, and leading dimensions may be missing.
#[derive(Debug, Default)]
pub struct AttentionExtra<'a> {
    /// [query heads, n tokens, history], added to the scores; minus infinity hides.
    pub bias: Option<Tensor<'a>>,
    /// [query heads, n tokens, history], made by [`Tensor::bool`]: false hides what the cache's rules would show.
    pub mask: Option<Tensor<'a>>,
    /// [n tokens, query heads], written: the log of the sum of exponentials.
    pub lse: Option<TensorMut<'a>>,
    /// [query heads, n tokens, history] f32, written: what each value counts for. For looking, not for speed.
    pub weights: Option<TensorMut<'a>>,
}

/// An open pass. It borrows its cache, reads it through `Deref`, and aborts when it is dropped without a commit.
#[derive(Debug)]
pub struct Pass<'a> {
    cache: &'a mut Cache,
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

    /// Stores one layer's keys and values [n tokens, KV heads, head size].
    pub fn put(&mut self, layer: i32, k: Tensor<'_>, v: Tensor<'_>) -> Result<()> {
        check(unsafe { sys::kvc_put(self.cache.handle, layer, &k.raw, &v.raw) })
    }

    /// Attention of the queries [n tokens, query heads, head size], written to `out`.
    pub fn attention(&mut self, layer: i32, q: Tensor<'_>, mut out: TensorMut<'_>) -> Result<()> {
        check(unsafe {
            sys::kvc_attention(
                self.cache.handle,
                layer,
                &q.raw,
                &mut out.raw,
                ptr::null_mut(),
            )
        })
    }

    /// `attention` that also writes the log of the sum of exponentials, [n tokens, query heads].
    pub fn attention_lse(
        &mut self,
        layer: i32,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut lse: TensorMut<'_>,
    ) -> Result<()> {
        check(unsafe {
            sys::kvc_attention(self.cache.handle, layer, &q.raw, &mut out.raw, &mut lse.raw)
        })
    }

    /// `attention` with what `extra` holds.
    pub fn attention_with(
        &mut self,
        layer: i32,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut extra: AttentionExtra<'_>,
    ) -> Result<()> {
        let read = |t: &Option<Tensor<'_>>| {
            t.as_ref()
                .map_or(ptr::null(), |t| &t.raw as *const sys::kvc_tensor)
        };
        let written = |t: &mut Option<TensorMut<'_>>| {
            t.as_mut()
                .map_or(ptr::null_mut(), |t| &mut t.raw as *mut sys::kvc_tensor)
        };
        let pointers = sys::kvc_attention_extra {
            struct_size: size_of::<sys::kvc_attention_extra>() as u32,
            reserved: 0,
            bias: read(&extra.bias),
            mask: read(&extra.mask),
            weights: written(&mut extra.weights),
        };
        let (handle, lse) = (self.cache.handle, written(&mut extra.lse));
        check(unsafe {
            sys::kvc_attention_with(handle, layer, &q.raw, &mut out.raw, lse, &pointers)
        })
    }

    /// `put` and `attention` in one crossing; all arguments are checked before anything is stored.
    pub fn put_attention(
        &mut self,
        layer: i32,
        k: Tensor<'_>,
        v: Tensor<'_>,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
    ) -> Result<()> {
        let handle = self.cache.handle;
        let none = ptr::null_mut();
        check(unsafe {
            sys::kvc_put_attention(handle, layer, &k.raw, &v.raw, &q.raw, &mut out.raw, none)
        })
    }

    /// `put_attention` that also writes the log of the sum of exponentials, [n tokens, query heads].
    pub fn put_attention_lse(
        &mut self,
        layer: i32,
        k: Tensor<'_>,
        v: Tensor<'_>,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut lse: TensorMut<'_>,
    ) -> Result<()> {
        let handle = self.cache.handle;
        check(unsafe {
            sys::kvc_put_attention(
                handle,
                layer,
                &k.raw,
                &v.raw,
                &q.raw,
                &mut out.raw,
                &mut lse.raw,
            )
        })
    }

    /// [`Cache::gather`], as if the pass were committed; zeros where it has not put the layer.
    pub fn gather(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.cache.gather(layer, sequence, k, v)
    }

    /// [`Cache::gather_transposed`], as if the pass were committed; zeros where it has not put the layer.
    pub fn gather_transposed(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.cache.gather_transposed(layer, sequence, k, v)
    }

    /// Replaces the tokens of the pass, by index, that see later tokens of their sequence too.
    pub fn set_causal(&mut self, except: &[i32]) -> Result<()> {
        let n = together("except", except.len(), except.len())?;
        check(unsafe { sys::kvc_set_causal(self.cache.handle, n, except.as_ptr()) })
    }

    /// Keys and values of a layer over the cells that the pass may see. Multiply nothing that `mask` hides.
    pub fn get(&mut self, layer: i32) -> Result<(View<'_>, View<'_>)> {
        let (mut k, mut v) = (empty(), empty());
        check(unsafe { sys::kvc_get(self.cache.handle, layer, &mut k, &mut v) })?;
        Ok((View::new(k), View::new(v)))
    }

    /// The cells that the columns of views, masks, biases and weights stand for, as `runs` numbers them. `get` may change it.
    pub fn history(&mut self) -> Result<Range<i32>> {
        let (mut first, mut n) = (0, 0);
        check(unsafe { sys::kvc_history(self.cache.handle, &mut first, &mut n) })?;
        Ok(first..first + n)
    }

    /// The shape that `mask` asks for: [n tokens, history].
    pub fn mask_shape(&mut self) -> Result<[usize; 2]> {
        let mut shape = empty();
        check(unsafe { sys::kvc_mask(self.cache.handle, &mut shape) })?;
        Ok([shape.shape[0] as usize, shape.shape[1] as usize])
    }

    /// Writes 0 where a token of the pass sees a cell of the views, minus infinity elsewhere; f32 or f16.
    pub fn mask(&mut self, mut into: TensorMut<'_>) -> Result<()> {
        check(unsafe { sys::kvc_mask(self.cache.handle, &mut into.raw) })
    }

    /// Keeps the pass.
    pub fn commit(mut self) -> Result<()> {
        check(unsafe { sys::kvc_commit(self.cache.handle) })?;
        self.open = false;
        Ok(())
    }

    /// Keeps of each named sequence its first tokens of this pass; sequences not named keep all. When that is an error the
    /// pass is aborted.
    pub fn commit_prefix(mut self, sequences: &[i32], keep: &[i32]) -> Result<()> {
        let n = together("sequences and keep", sequences.len(), keep.len())?;
        check(unsafe {
            sys::kvc_commit_prefix(self.cache.handle, n, sequences.as_ptr(), keep.as_ptr())
        })?;
        self.open = false;
        Ok(())
    }

    /// Forgets the pass, as dropping it does: the cache is as it was before `begin`.
    pub fn abort(mut self) -> Result<()> {
        self.open = false;
        check(unsafe { sys::kvc_abort(self.cache.handle) })
    }
}
