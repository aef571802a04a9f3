use crate::error::{Error, Result, Status};
use crate::tensor::DType;
use kvc_sys as sys;
use std::mem::size_of;
use std::ptr;

/// For [`CausalDesc::memory`]: keep every position, however short the reach.
pub const UNLIMITED: i32 = sys::KVC_NONE;

/// The geometry of a cache; all bounds are hard. See `kvc_cache_desc`.
#[derive(Clone, Debug)]
pub struct CacheDesc {
    pub n_layers: i32,
    pub n_kv_heads: i32,
    pub head_dim_k: i32,
    /// 0: as head_dim_k
    pub head_dim_v: i32,
    pub dtype_k: DType,
    pub dtype_v: DType,
    /// Sequences are 0 … max_sequences - 1.
    pub max_sequences: i32,
    /// Positions that one sequence may hold.
    pub capacity: i32,
    /// A pass has 1 … max_batch tokens.
    pub max_batch: i32,
    /// Pool that all sequences share; 0: as many as the other bounds can need.
    pub cells: i32,
    /// 0: n_kv_heads * 16
    pub max_q_heads: i32,
    /// Each position of a batch is its sequence's next: no gaps.
    pub strict: bool,
    /// Cells become zeros when they are freed: several tenants in one process.
    pub zero_on_free: bool,
    /// Touch all memory at create.
    pub prefault: bool,
}

impl Default for CacheDesc {
    fn default() -> CacheDesc {
        CacheDesc {
            n_layers: 0,
            n_kv_heads: 0,
            head_dim_k: 0,
            head_dim_v: 0,
            dtype_k: DType::F32,
            dtype_v: DType::F32,
            max_sequences: 1,
            capacity: 0,
            max_batch: 0,
            cells: 0,
            max_q_heads: 0,
            strict: false,
            zero_on_free: false,
            prefault: false,
        }
    }
}

impl CacheDesc {
    pub(crate) fn raw(&self) -> sys::kvc_cache_desc {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        sys::kvc_cache_desc {
            struct_size: size_of::<sys::kvc_cache_desc>() as u32,
            kind: sys::KVC_CAUSAL,
            flags: flag(self.strict, sys::KVC_CACHE_STRICT)
                | flag(self.zero_on_free, sys::KVC_CACHE_ZERO_ON_FREE)
                | flag(self.prefault, sys::KVC_CACHE_PREFAULT),
            n_layers: self.n_layers,
            n_kv_heads: self.n_kv_heads,
            head_dim_k: self.head_dim_k,
            head_dim_v: self.head_dim_v,
            dtype_k: self.dtype_k.code(),
            dtype_v: self.dtype_v.code(),
            max_sequences: self.max_sequences,
            capacity: self.capacity,
            max_batch: self.max_batch,
            cells: self.cells,
            max_q_heads: self.max_q_heads,
            reserved: 0,
        }
    }
}

/// What a token sees and what is kept; all zero: every token sees everything before it. See `kvc_causal_desc`.
#[derive(Clone, Debug, Default)]
pub struct CausalDesc {
    /// A token sees itself and `reach` positions before it; 0: everything.
    pub reach: i32,
    /// Positions kept; 0: the reach; [`UNLIMITED`]: all.
    pub memory: i32,
    /// Attention restarts every `chunk` positions; 0: never.
    pub chunk: i32,
    /// Positions below it stay visible whatever the reach says.
    pub keep_first: i32,
    /// The range that views and masks span is rounded outward to a multiple of it.
    pub cell_padding: i32,
    /// Keys carry no rotation: positions may move without touching them.
    pub position_free: bool,
}

impl CausalDesc {
    pub(crate) fn raw(&self) -> sys::kvc_causal_desc {
        sys::kvc_causal_desc {
            struct_size: size_of::<sys::kvc_causal_desc>() as u32,
            flags: if self.position_free {
                sys::KVC_CAUSAL_POSITION_FREE
            } else {
                0
            },
            reach: self.reach,
            memory: self.memory,
            chunk: self.chunk,
            keep_first: self.keep_first,
            cell_padding: self.cell_padding,
            mask_dtype: 0, // Pass::mask says what it writes
        }
    }
}

/// How layers attend, bound once. See `kvc_attention_desc`.
#[derive(Clone, Debug, Default)]
pub struct AttentionDesc<'a> {
    pub n_q_heads: i32,
    /// 0: 1 / sqrt(head_dim_k)
    pub scale: f32,
    /// 0: none
    pub softcap: f32,
    /// [n_q_heads]
    pub alibi_slopes: Option<&'a [f32]>,
    /// [n_q_heads]
    pub sinks: Option<&'a [f32]>,
}

/// Which dimensions turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// (0, 1) (2, 3) …
    Neighbours,
    /// (0, n / 2) (1, n / 2 + 1) …
    Halves,
}

/// How the caller rotates keys and queries. See `kvc_rope_desc`.
#[derive(Clone, Debug)]
pub struct RopeDesc<'a> {
    pub pairs: RopePairs,
    /// 0: head_dim_k
    pub n_dims: i32,
    /// 0: 10000
    pub base: f32,
    /// 0: 1
    pub scale: f32,
    /// [n_dims / 2]
    pub frequency_factors: Option<&'a [f32]>,
}

impl Default for RopeDesc<'_> {
    fn default() -> Self {
        RopeDesc {
            pairs: RopePairs::Neighbours,
            n_dims: 0,
            base: 0.0,
            scale: 0.0,
            frequency_factors: None,
        }
    }
}

/// The library trusts the length of constants.
pub(crate) fn constants(what: &str, values: Option<&[f32]>, n: usize) -> Result<*const f32> {
    match values {
        Some(values) if values.len() != n => {
            let message = format!("{what} has {} elements where {n} belong", values.len());
            Err(Error::new(Status::INVALID_ARGUMENT, message))
        }
        _ => Ok(values.map_or(ptr::null(), <[f32]>::as_ptr)),
    }
}
