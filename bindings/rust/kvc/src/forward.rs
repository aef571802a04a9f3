use crate::descriptors::{address, constants};
use crate::error::{check, Result};
use crate::extra::AttentionExtra;
use crate::operators::Operator;
use crate::tensor::{Tensor, TensorMut};
use crate::view::extents;
use kvc_sys as sys;
use std::mem::size_of;

/// What a call of attention without a cache sees, and its constants. All default: every query sees every
/// key. See `kvc_forward_desc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardDesc<'a> {
    /// A query at position `p` sees keys at or below `p`.
    pub causal: bool,
    /// Keys at or above `p - reach`; 0: no limit.
    pub reach: i32,
    /// Keys of the chunk that `p` lies in; 0: no chunks.
    pub chunk: i32,
    /// The position of the first query, where keys count from 0. 0: the queries are the last positions;
    /// [`NONE`](crate::NONE): 0.
    pub query_offset: i32,
    /// The seed of dropout, with the probability of [`OperatorDesc`](crate::OperatorDesc). `None`: no
    /// dropout.
    pub dropout: Option<u64>,
    /// Of dropout, 0 … 65535.
    pub layer: i32,
    /// 0: none
    pub softcap: f32,
    /// `[query heads]`
    pub alibi_slopes: Option<&'a [f32]>,
    /// `[query heads]`
    pub sinks: Option<&'a [f32]>,
    /// A partial result, for [`merge_attention`](crate::merge_attention): `sinks` take no part.
    pub no_sinks: bool,
}

impl ForwardDesc<'_> {
    fn raw(&self) -> sys::kvc_forward_desc {
        let flag = |set, bit| if set { bit } else { 0 };
        sys::kvc_forward_desc {
            struct_size: size_of::<sys::kvc_forward_desc>() as u32,
            flags: flag(self.causal, sys::KVC_FORWARD_CAUSAL)
                | flag(self.dropout.is_some(), sys::KVC_FORWARD_DROPOUT)
                | flag(self.no_sinks, sys::KVC_FORWARD_NO_SINKS),
            dropout_seed: self.dropout.unwrap_or(0),
            reach: self.reach,
            chunk: self.chunk,
            query_offset: self.query_offset,
            layer: self.layer,
            softcap: self.softcap,
            reserved: 0,
        }
    }
}

impl Operator {
    /// Computes attention without a cache, within the bounds of [`OperatorDesc`](crate::OperatorDesc):
    /// queries [rows, q_len, query heads, head_dim_k], keys [rows, kv_len, KV heads, head_dim_k], values
    /// [rows, kv_len, KV heads, head_dim_v], of F32, F16 or BF16. Written: `out` [rows, q_len, query
    /// heads, head_dim_v]. A query that sees no key gets 0.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let bounds = OperatorDesc {
    ///     max_rows: 2, max_q_len: 16, max_kv_len: 64, n_kv_heads: 2, max_q_heads: 4, head_dim_k: 32,
    ///     ..Default::default()
    /// };
    /// let mut flash = Operator::new(&device, "flash", &bounds)?;
    /// let (q, k, v) = ([0.25; 3 * 4 * 32], [0.5; 5 * 2 * 32], [1.0; 5 * 2 * 32]);
    /// let mut out = [0.0; 3 * 4 * 32];
    /// flash.forward(
    ///     &ForwardDesc { causal: true, ..Default::default() },
    ///     Tensor::f32(&q, &[1, 3, 4, 32])?,
    ///     Tensor::f32(&k, &[1, 5, 2, 32])?,
    ///     Tensor::f32(&v, &[1, 5, 2, 32])?,
    ///     TensorMut::f32(&mut out, &[1, 3, 4, 32])?,
    /// )?;
    /// assert_eq!(out, [1.0; 3 * 4 * 32]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn forward(
        &mut self,
        desc: &ForwardDesc<'_>,
        q: Tensor<'_>,
        k: Tensor<'_>,
        v: Tensor<'_>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.forward_with(desc, q, k, v, out, AttentionExtra::default())
    }

    /// [`Operator::forward`] with the tensors of `extra`: bias, mask and weights [rows, query heads,
    /// q_len, kv_len], log-sum-exp [rows, q_len, query heads]. Its other fields belong to caches.
    pub fn forward_with(
        &mut self,
        desc: &ForwardDesc<'_>,
        q: Tensor<'_>,
        k: Tensor<'_>,
        v: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut extra: AttentionExtra<'_>,
    ) -> Result<()> {
        if let [_, _, heads, _] = *extents(&q.raw) {
            constants("alibi_slopes", desc.alibi_slopes, heads, "query head")?;
            constants("sinks", desc.sinks, heads, "query head")?;
        }
        let (slopes, sinks) = (address(desc.alibi_slopes), address(desc.sinks));
        let (raw, extra) = (desc.raw(), extra.raw());
        let (q, k, v, out) = (&q.raw, &k.raw, &v.raw, &mut out.raw);
        check(unsafe {
            sys::kvc_operator_forward(self.handle, &raw, q, k, v, slopes, sinks, &extra, out)
        })
    }
}
