use crate::batch::count;
use crate::cache::Cache;
use crate::descriptors::constants;
use crate::error::{check, Result};
use crate::tensor::{Tensor, TensorMut};
use crate::view::extents;
use kvc_sys as sys;
use std::mem::size_of;

/// What only a lightning cache needs. Such a cache is for linear attention with decay (Lightning
/// Attention, RetNet, MiniMax-01): in place of keys and values a sequence has, per layer and KV head, one
/// matrix [head_dim_k, head_dim_v] of F32, and memory does not grow with the sequence. kvc computes the
/// recurrence and the outputs. Of [`CacheDesc`](crate::CacheDesc) capacity, cells and storage types stay
/// 0. See `kvc/lightning.h`.
///
/// ```
/// use kvc::{slopes, Cache, CacheDesc, Device, Kind, LightningDesc, Slopes, Tensor, TensorMut};
/// # fn main() -> kvc::Result<()> {
/// # let device = Device::open("cpu", 0)?;
/// let desc = CacheDesc {
///     n_layers: 2, n_kv_heads: 8, head_dim_k: 16, max_sequences: 4, max_batch: 64,
///     ..Default::default()
/// };
/// let mut cache = Cache::new(&device, &desc, &Kind::Lightning(LightningDesc::default()))?;
/// for layer in 0..2 {
///     let mut of_heads = [0.0; 8];
///     slopes(Slopes::Lightning2, layer, 2, &mut of_heads)?;
///     cache.bind_decay(layer, layer + 1, &of_heads)?; // required, while the cache is empty
/// }
///
/// let (k, v, q) = ([0.5; 3 * 128], [1.0; 3 * 128], [0.25; 3 * 128]); // your projections
/// let mut out = [0.0; 3 * 128];
/// let shape = [3, 8, 16];
/// let mut pass = cache.begin(&[0, 1, 2], &[0; 3])?;
/// for layer in 0..2 {
///     let (k, v, q) = (Tensor::f32(&k, &shape)?, Tensor::f32(&v, &shape)?, Tensor::f32(&q, &shape)?);
///     pass.put_attention(layer, k, v, q, TensorMut::f32(&mut out, &shape)?)?;
/// }
/// pass.commit()?;
/// assert_eq!(out[0], 16.0 * 0.5 * 0.25); // the first token reads itself alone
///
/// let mut state = [0.0; 8 * 16 * 16];
/// cache.lightning_read(0, 0, TensorMut::f32(&mut state, &[1, 8, 16, 16])?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LightningDesc {
    /// Tokens that a pass multiplies as matrices at once, 1 … 1024; 0: the kernel's own number.
    pub block: i32,
    /// Checkpoints that a sequence keeps; 0: 24, [`NONE`](crate::NONE): none. The field to choose by
    /// what [`Cache::memory_bytes`] returns.
    pub checkpoints: i32,
    /// Positions from one automatic checkpoint to the next; 0: 1664, [`NONE`](crate::NONE): no automatic
    /// ones.
    pub checkpoint_interval: i32,
    /// The last position of a pass that leaves the first automatic one; 0: 16, [`NONE`](crate::NONE):
    /// any.
    pub checkpoint_min_pos: i32,
    /// [`Pass::commit_prefix`](crate::Pass::commit_prefix) can cut a sequence with up to `draft_states +
    /// 1` tokens in the pass.
    pub draft_states: i32,
    /// Middle parts may be removed; states then still contain what was removed.
    pub approximate: bool,
    /// Checkpoints lie in host memory, where they are on the CPU in any case.
    pub host_checkpoints: bool,
    /// Every layer is attended by [`Layers::put_attention`](crate::Layers::put_attention):
    /// [`Layers::attention`](crate::Layers::attention) is an error, and prompts take less time on the CPU.
    pub fused: bool,
}

impl LightningDesc {
    pub(crate) fn raw(&self) -> sys::kvc_lightning_desc {
        let flag = |set, bit| if set { bit } else { 0 };
        sys::kvc_lightning_desc {
            struct_size: size_of::<sys::kvc_lightning_desc>() as u32,
            kind: sys::KVC_LIGHTNING,
            flags: flag(self.approximate, sys::KVC_LIGHTNING_APPROXIMATE)
                | flag(self.host_checkpoints, sys::KVC_LIGHTNING_HOST_CHECKPOINTS)
                | flag(self.fused, sys::KVC_LIGHTNING_FUSED),
            block: self.block,
            checkpoints: self.checkpoints,
            checkpoint_interval: self.checkpoint_interval,
            checkpoint_min_pos: self.checkpoint_min_pos,
            draft_states: self.draft_states,
        }
    }
}

/// A family of slopes, for [`slopes`]. H: heads, h: the head, l: layer, L: layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slopes {
    /// `2^(-8 (h + 1) / H)`; if H is no power of two those of the next lower power, then every second
    /// one of the next higher. Also what
    /// [`AttentionDesc::alibi_slopes`](crate::AttentionDesc::alibi_slopes) takes.
    Alibi,
    /// `Alibi * (1 - l / max(L - 1, 1) + 1e-5)`
    Lightning2,
    /// `2^(-8 (h + 1) / H) * (1 - l / (L - 1 + 1e-5) + 1e-5)`
    Minimax,
    /// `8 h / H * (1 - l / L)`
    Linear,
}

/// Writes the slopes of a known family, one for each head that `out` has room for, computed in double
/// and rounded once. [`Slopes::Alibi`] ignores the layers.
pub fn slopes(family: Slopes, layer: i32, n_layers: i32, out: &mut [f32]) -> Result<()> {
    let family = match family {
        Slopes::Alibi => sys::KVC_SLOPES_ALIBI,
        Slopes::Lightning2 => sys::KVC_SLOPES_LIGHTNING2,
        Slopes::Minimax => sys::KVC_SLOPES_MINIMAX,
        Slopes::Linear => sys::KVC_SLOPES_LINEAR,
    };
    let n_heads = count("slopes", out.len())?;
    check(unsafe { sys::kvc_slopes(family, n_heads, layer, n_layers, out.as_mut_ptr()) })
}

impl Cache {
    /// Binds how the states of layers [begin, end) of a lightning cache decay: by `exp(-slope)` per
    /// position. One slope for each KV head, 0 or more. Only an empty cache takes them, and a layer
    /// without them takes no put. Slices are copied.
    pub fn bind_decay(&mut self, begin: i32, end: i32, slopes: &[f32]) -> Result<()> {
        for heads in self.of_owners(begin, end, |cache| cache.n_kv_heads) {
            constants("slopes", Some(slopes), heads as usize, "KV head")?;
        }
        check(unsafe { sys::kvc_bind_decay(self.handle, begin, end, slopes.as_ptr()) })
    }

    /// Copies the states of as many sequences as `state` [sequences, KV heads, head_dim_k, head_dim_v]
    /// has, from `sequence_begin` on, as of their `next`. In a pass, as if the pass were committed.
    pub fn lightning_read(
        &self,
        layer: i32,
        sequence_begin: i32,
        mut state: TensorMut<'_>,
    ) -> Result<()> {
        let n = count("sequences", extents(&state.raw)[0])?;
        let (handle, state) = (self.handle, &mut state.raw);
        check(unsafe { sys::kvc_lightning_read(handle, layer, sequence_begin, n, state) })
    }

    /// Replaces the states of as many sequences as `state` has in one layer, as
    /// [`Cache::lightning_read`] copies them. Their checkpoints are dropped. An empty sequence has no
    /// state to replace (BAD_STATE).
    pub fn lightning_write(
        &mut self,
        layer: i32,
        sequence_begin: i32,
        state: Tensor<'_>,
    ) -> Result<()> {
        let n = count("sequences", extents(&state.raw)[0])?;
        let (handle, state) = (self.handle, &state.raw);
        check(unsafe { sys::kvc_lightning_write(handle, layer, sequence_begin, n, state) })
    }
}
