use crate::batch::count;
use crate::cache::Cache;
use crate::error::{check, Result};
use crate::extra::AttentionExtra;
use crate::tensor::{empty, DType, Tensor, TensorMut};
use crate::view::{extents, View};
use kvc_sys as sys;
use std::ops::{Deref, Range};
use std::ptr;

/// What an open pass does with the layers of a cache. A [`Pass`](crate::Pass) is one of its cache;
/// [`Pass::children_mut`](crate::Pass::children_mut) returns one of each child of a wrapper. Its
/// `Deref` gives the cache's methods that only read.
#[derive(Debug)]
pub struct Layers<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) n_tokens: i32,
}

impl Deref for Layers<'_> {
    type Target = Cache;
    fn deref(&self) -> &Cache {
        self.cache
    }
}

impl Layers<'_> {
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

    /// [`Layers::attention`] with the tensors of `extra`.
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

    /// [`Layers::put`] and [`Layers::attention`] in one call. All arguments are checked before K and V
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

    /// [`Layers::put_attention`] with the tensors of `extra`.
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
    /// [`Layers::mask`] before you multiply: cells that it hides may hold anything. NOT_SUPPORTED: K
    /// or V is stored as codes, which [`Layers::get_codes`] and [`Layers::get_copy`] read;
    /// [`Layers::get_keys`] or [`Layers::get_values`] returns the view of the other.
    pub fn get(&mut self, layer: i32) -> Result<(View<'_>, View<'_>)> {
        let (mut k, mut v) = (empty(), empty());
        check(unsafe { sys::kvc_get(self.cache.handle, layer, &mut k, &mut v) })?;
        Ok((View::new(k), View::new(v)))
    }

    /// [`Layers::get`] of the keys alone.
    pub fn get_keys(&mut self, layer: i32) -> Result<View<'_>> {
        let mut k = empty();
        check(unsafe { sys::kvc_get(self.cache.handle, layer, &mut k, ptr::null_mut()) })?;
        Ok(View::new(k))
    }

    /// [`Layers::get`] of the values alone.
    pub fn get_values(&mut self, layer: i32) -> Result<View<'_>> {
        let mut v = empty();
        check(unsafe { sys::kvc_get(self.cache.handle, layer, ptr::null_mut(), &mut v) })?;
        Ok(View::new(v))
    }

    /// Returns the cells that the columns of views, masks, biases and weights of a layer stand for,
    /// as [`Cache::runs`] numbers them. [`Layers::get`] may change the range.
    pub fn history(&mut self, layer: i32) -> Result<Range<i32>> {
        let (mut first, mut n) = (0, 0);
        check(unsafe { sys::kvc_history(self.cache.handle, layer, &mut first, &mut n) })?;
        Ok(first..first + n)
    }

    /// Returns the shape of a layer's mask: [n tokens, history], in passes of rows [batch, 1, q_len,
    /// columns].
    pub fn mask_shape(&mut self, layer: i32) -> Result<Vec<usize>> {
        Ok(extents(&self.proposed_mask(layer)?).to_vec())
    }

    /// Returns the element type that the cache proposes for a layer's mask:
    /// [`TransformerDesc::mask_dtype`](crate::TransformerDesc::mask_dtype), of other caches F32.
    /// [`Layers::mask`] writes the others as well.
    pub fn mask_dtype(&mut self, layer: i32) -> Result<DType> {
        Ok(DType(self.proposed_mask(layer)?.dtype))
    }

    fn proposed_mask(&mut self, layer: i32) -> Result<sys::kvc_tensor> {
        let mut mask = empty();
        check(unsafe { sys::kvc_mask(self.cache.handle, layer, &mut mask) })?;
        Ok(mask)
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
}
