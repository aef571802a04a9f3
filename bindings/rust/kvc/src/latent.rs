//! Puts into a cache whose V is in K, which take no V.
use crate::codec::Codes;
use crate::error::{check, Result};
use crate::extra::AttentionExtra;
use crate::layers::Layers;
use crate::tensor::{Tensor, TensorMut};
use kvc_sys as sys;
use std::ptr;

impl Layers<'_> {
    /// [`Layers::put`] into a cache whose V is in K ([`CacheDesc::v_in_k`](crate::CacheDesc::v_in_k)),
    /// as in latent attention. Each kind of cache refuses the other's put.
    ///
    /// One latent vector of 512 numbers and 64 that RoPE turns, for all 16 query heads of a model:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let desc = CacheDesc {
    ///     n_layers: 1, n_kv_heads: 1, head_dim_k: 576, capacity: 4096, max_batch: 64,
    ///     v_in_k: true, head_dim_v: 512, // V is the first 512 numbers of K
    ///     dtype_k: DType::F16, max_q_heads: 16,
    ///     ..Default::default()
    /// };
    /// let mut cache = Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default()))?;
    /// let rope = RopeDesc { first_dim: 512, ..Default::default() }; // the 64 behind V
    /// cache.bind_rope(0, 1, &rope)?;
    ///
    /// let (k, q) = (vec![0.5; 2 * 576], vec![0.25; 2 * 16 * 576]);
    /// let mut out = vec![0.0; 2 * 16 * 512];
    /// let mut pass = cache.begin(&[0, 1], &[0, 0])?;
    /// pass.put_k(0, Tensor::f32(&k, &[2, 1, 576])?)?;
    /// let into = TensorMut::f32(&mut out, &[2, 16, 512])?;
    /// pass.attention(0, Tensor::f32(&q, &[2, 16, 576])?, into)?;
    /// pass.commit()?;
    /// assert_eq!(out[0], 0.5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn put_k(&mut self, layer: i32, k: Tensor<'_>) -> Result<()> {
        check(unsafe { sys::kvc_put(self.cache.handle, layer, &k.raw, ptr::null()) })
    }

    /// [`Layers::put_k`] and [`Layers::attention`] in one call, as [`Layers::put_attention`].
    pub fn put_k_attention(
        &mut self,
        layer: i32,
        k: Tensor<'_>,
        q: Tensor<'_>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.put_k_attention_with(layer, k, q, out, AttentionExtra::default())
    }

    /// [`Layers::put_k_attention`] with the tensors of `extra`.
    pub fn put_k_attention_with(
        &mut self,
        layer: i32,
        k: Tensor<'_>,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut extra: AttentionExtra<'_>,
    ) -> Result<()> {
        let (handle, extra) = (self.cache.handle, extra.raw());
        let (k, v, q, out) = (&k.raw, ptr::null(), &q.raw, &mut out.raw);
        check(unsafe { sys::kvc_put_attention(handle, layer, k, v, q, out, &extra) })
    }

    /// [`Layers::put_codes`] into a cache whose V is in K.
    pub fn put_k_codes(&mut self, layer: i32, k: Codes<'_>) -> Result<()> {
        let (handle, scales, none) = (self.cache.handle, k.scales(), ptr::null());
        let codes = &k.codes.raw;
        check(unsafe { sys::kvc_put_codes(handle, layer, codes, scales, none, none) })
    }
}
