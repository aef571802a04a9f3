use crate::encoder::EncoderDesc;
use crate::error::{Error, Result, Status};
use crate::lightning::LightningDesc;
use crate::recurrent::RecurrentDesc;
use crate::tensor::DType;
use crate::transformer::TransformerDesc;
use kvc_sys as sys;
use std::mem::size_of;
use std::os::raw::c_void;
use std::ptr;

/// For [`CausalDesc::memory`]: every position is kept, whatever the reach.
pub const UNLIMITED: i32 = sys::KVC_NONE;

// ---- The cache ---------------------------------------------------------------------------------

/// The geometry of a cache. All bounds are hard. See `kvc_cache_desc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDesc {
    pub n_layers: i32,
    pub n_kv_heads: i32,
    pub head_dim_k: i32,
    /// 0: as head_dim_k
    pub head_dim_v: i32,
    /// Storage type of K: F32 (the default), F16, BF16, F8_E4M3, F8_E5M2, Q8_0, Q4_0, INT8 or NF4.
    /// [`storage_query`](crate::storage_query) tells how many bytes a row takes.
    pub dtype_k: DType,
    /// Storage type of V, independent of dtype_k. With `v_in_k` the default.
    pub dtype_v: DType,
    /// Sequences are 0 … max_sequences - 1; by default there is one.
    pub max_sequences: i32,
    /// Positions that one sequence may hold; in an encoder cache, that one input may have; in a
    /// transformer cache, columns of a row.
    pub capacity: i32,
    /// A pass has 1 … max_batch tokens, padding included.
    pub max_batch: i32,
    /// Size of the pool that all sequences share; 0: as many cells as the other bounds can need. For
    /// an encoder cache 0: see [`EncoderDesc::inputs`]. For a transformer cache 0.
    pub cells: i32,
    /// Query heads that an attention call may have; 0: n_kv_heads * 16
    pub max_q_heads: i32,
    /// NF4: values that share a scale, 16, 32, 64 or 128; 0: the largest of 64, 32 and 16 that divides
    /// head_dim_k. Other types: 0
    pub block_k: i32,
    /// Likewise for V.
    pub block_v: i32,
    /// With `v_in_k`, the first dimension of K that belongs to V; else 0.
    pub v_first: i32,
    /// Each position of a batch must be its sequence's next: no gaps. Recommended to begin with.
    pub strict: bool,
    /// Overwrites cells with zeros when they are freed: for several tenants in one process.
    pub zero_on_free: bool,
    /// Touches all memory when the cache is created, so that no page fault happens later.
    pub prefault: bool,
    /// Stores K rotated by a Hadamard matrix, which spreads outliers over all dimensions: Q8_0, Q4_0,
    /// INT8 and NF4, with an even head_dim_k.
    pub rotate_k: bool,
    /// Stores V likewise.
    pub rotate_v: bool,
    /// Stores K and V of a token side by side in one row: F32, F16 or BF16, the same for both. Causal
    /// caches.
    pub interleaved: bool,
    /// V is dimensions `v_first … v_first + head_dim_v` of K and is not stored: latent attention.
    /// [`Layers::put_k`](crate::Layers::put_k) puts into such a cache. Causal caches.
    pub v_in_k: bool,
}

impl Default for CacheDesc {
    fn default() -> CacheDesc {
        CacheDesc {
            n_layers: 0,
            n_kv_heads: 0,
            head_dim_k: 0,
            head_dim_v: 0,
            dtype_k: DType::default(),
            dtype_v: DType::default(),
            max_sequences: 1,
            capacity: 0,
            max_batch: 0,
            cells: 0,
            max_q_heads: 0,
            block_k: 0,
            block_v: 0,
            v_first: 0,
            strict: false,
            zero_on_free: false,
            prefault: false,
            rotate_k: false,
            rotate_v: false,
            interleaved: false,
            v_in_k: false,
        }
    }
}

impl CacheDesc {
    fn flags(&self) -> u64 {
        [
            (self.strict, sys::KVC_CACHE_STRICT),
            (self.zero_on_free, sys::KVC_CACHE_ZERO_ON_FREE),
            (self.prefault, sys::KVC_CACHE_PREFAULT),
            (self.rotate_k, sys::KVC_CACHE_ROTATE_K),
            (self.rotate_v, sys::KVC_CACHE_ROTATE_V),
            (self.interleaved, sys::KVC_CACHE_INTERLEAVED),
            (self.v_in_k, sys::KVC_CACHE_V_IN_K),
        ]
        .iter()
        .fold(
            0,
            |flags, &(set, bit)| if set { flags | bit } else { flags },
        )
    }

    /// Takes over the sizes that a call filled in.
    pub(crate) fn fill_in(&mut self, raw: &sys::kvc_cache_desc) {
        self.n_layers = raw.n_layers;
        self.n_kv_heads = raw.n_kv_heads;
        self.head_dim_k = raw.head_dim_k;
        self.head_dim_v = raw.head_dim_v;
        self.max_sequences = raw.max_sequences;
        self.capacity = raw.capacity;
        self.cells = raw.cells;
    }

    pub(crate) fn raw(&self, kind: u32) -> sys::kvc_cache_desc {
        sys::kvc_cache_desc {
            struct_size: size_of::<sys::kvc_cache_desc>() as u32,
            kind,
            flags: self.flags(),
            n_layers: self.n_layers,
            n_kv_heads: self.n_kv_heads,
            head_dim_k: self.head_dim_k,
            head_dim_v: self.head_dim_v,
            dtype_k: self.dtype_k.0,
            dtype_v: self.dtype_v.0,
            max_sequences: self.max_sequences,
            capacity: self.capacity,
            max_batch: self.max_batch,
            cells: self.cells,
            max_q_heads: self.max_q_heads,
            block_k: self.block_k,
            block_v: self.block_v,
            v_first: self.v_first,
        }
    }
}

/// The kind of a cache and what only that kind needs. Later versions add more. A wrapper is made by
/// [`Cache::wrap`](crate::Cache::wrap) or [`Cache::from_layers`](crate::Cache::from_layers).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Keys and values of every token, for decoders.
    Causal(CausalDesc),
    /// Keys and values of what an encoder read, for cross attention.
    Encoder(EncoderDesc),
    /// States of recurrent layers.
    Recurrent(RecurrentDesc),
    /// A batch of rows of keys and values.
    Transformer(TransformerDesc),
    /// States of linear attention with decay.
    Lightning(LightningDesc),
}

/// The two descriptors of a cache, for C.
pub(crate) struct RawDesc {
    cache: sys::kvc_cache_desc,
    kind: RawKind,
}

enum RawKind {
    Causal(sys::kvc_causal_desc),
    Encoder(sys::kvc_encoder_desc),
    Recurrent(sys::kvc_recurrent_desc),
    Transformer(sys::kvc_transformer_desc),
    Lightning(sys::kvc_lightning_desc),
}

impl RawDesc {
    pub(crate) fn new(desc: &CacheDesc, kind: &Kind) -> RawDesc {
        match kind {
            Kind::Causal(causal) => RawDesc {
                cache: desc.raw(sys::KVC_CAUSAL),
                kind: RawKind::Causal(causal.raw()),
            },
            Kind::Encoder(encoder) => RawDesc {
                cache: desc.raw(sys::KVC_ENCODER),
                kind: RawKind::Encoder(encoder.raw()),
            },
            Kind::Recurrent(recurrent) => RawDesc {
                cache: desc.raw(sys::KVC_RECURRENT),
                kind: RawKind::Recurrent(recurrent.raw()),
            },
            Kind::Transformer(transformer) => RawDesc {
                cache: desc.raw(sys::KVC_TRANSFORMER),
                kind: RawKind::Transformer(transformer.raw()),
            },
            Kind::Lightning(lightning) => RawDesc {
                cache: desc.raw(sys::KVC_LIGHTNING),
                kind: RawKind::Lightning(lightning.raw()),
            },
        }
    }

    pub(crate) fn cache(&self) -> *const sys::kvc_cache_desc {
        &self.cache
    }

    pub(crate) fn kind(&self) -> *const c_void {
        match &self.kind {
            RawKind::Causal(desc) => desc as *const _ as *const c_void,
            RawKind::Encoder(desc) => desc as *const _ as *const c_void,
            RawKind::Recurrent(desc) => desc as *const _ as *const c_void,
            RawKind::Transformer(desc) => desc as *const _ as *const c_void,
            RawKind::Lightning(desc) => desc as *const _ as *const c_void,
        }
    }
}

/// What a token of a causal cache sees and what is kept. All zero: every token sees everything
/// before it. See `kvc_causal_desc`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CausalDesc {
    /// A token sees itself and `reach` positions before it; 0: everything.
    pub reach: i32,
    /// Positions kept; 0: the reach; [`UNLIMITED`]: all.
    pub memory: i32,
    /// Attention restarts every `chunk` positions; 0: never.
    pub chunk: i32,
    /// Positions below it stay visible whatever the reach.
    pub keep_first: i32,
    /// The range that views and masks span is rounded outward to a multiple of it.
    pub cell_padding: i32,
    /// Keys carry no rotation: positions may move without touching them.
    pub position_free: bool,
}

impl CausalDesc {
    fn raw(&self) -> sys::kvc_causal_desc {
        sys::kvc_causal_desc {
            struct_size: size_of::<sys::kvc_causal_desc>() as u32,
            kind: sys::KVC_CAUSAL,
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
            mask_dtype: 0, // the tensor that the caller passes to Layers::mask decides
        }
    }
}

// ---- The model's constants ---------------------------------------------------------------------

/// The constants of attention for a range of layers. See `kvc_attention_desc`.
#[derive(Clone, Debug, Default)]
pub struct AttentionDesc<'a> {
    /// Required: a multiple of n_kv_heads, at most max_q_heads. 0 is refused.
    pub n_q_heads: i32,
    /// 0: 1 / sqrt(head_dim_k)
    pub scale: f32,
    /// 0: none
    pub softcap: f32,
    /// `[n_q_heads]`
    pub alibi_slopes: Option<&'a [f32]>,
    /// `[n_q_heads]`
    pub sinks: Option<&'a [f32]>,
}

impl AttentionDesc<'_> {
    pub(crate) fn raw(&self) -> sys::kvc_attention_desc {
        sys::kvc_attention_desc {
            struct_size: size_of::<sys::kvc_attention_desc>() as u32,
            n_q_heads: self.n_q_heads,
            scale: self.scale,
            softcap: self.softcap,
            flags: 0,
        }
    }

    /// Returns the addresses of the slopes and the sinks, null for what is absent.
    pub(crate) fn arrays(&self) -> Result<(*const f32, *const f32)> {
        let n = usize::try_from(self.n_q_heads).unwrap_or(0);
        let slopes = constants("alibi_slopes", self.alibi_slopes, n, "query head")?;
        let sinks = constants("sinks", self.sinks, n, "query head")?;
        Ok((slopes, sinks))
    }
}

/// Which dimensions rotate together, counted from `first_dim`.
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
    /// Dimensions that rotate; 0: all from first_dim on, rounded down to an even number.
    pub n_dims: i32,
    /// The first dimension that rotates.
    pub first_dim: i32,
    /// 0: 10000
    pub base: f32,
    /// 0: 1
    pub scale: f32,
    /// `[n_dims / 2]`
    pub frequency_factors: Option<&'a [f32]>,
}

impl Default for RopeDesc<'_> {
    fn default() -> Self {
        RopeDesc {
            pairs: RopePairs::Neighbours,
            n_dims: 0,
            first_dim: 0,
            base: 0.0,
            scale: 0.0,
            frequency_factors: None,
        }
    }
}

impl RopeDesc<'_> {
    pub(crate) fn raw(&self) -> sys::kvc_rope_desc {
        sys::kvc_rope_desc {
            struct_size: size_of::<sys::kvc_rope_desc>() as u32,
            pairs: match self.pairs {
                RopePairs::Neighbours => sys::KVC_ROPE_NEIGHBOURS,
                RopePairs::Halves => sys::KVC_ROPE_HALVES,
            },
            n_dims: self.n_dims,
            base: self.base,
            scale: self.scale,
            first_dim: self.first_dim,
        }
    }

    /// Returns the address of the factors, null if they are absent. `head_dims_k`: of the layers that
    /// they are for.
    pub(crate) fn factors(&self, head_dims_k: impl Iterator<Item = i32>) -> Result<*const f32> {
        for head_dim_k in head_dims_k {
            let n_dims = match self.n_dims {
                0 => head_dim_k.saturating_sub(self.first_dim),
                n_dims => n_dims,
            };
            let n = usize::try_from(n_dims / 2).unwrap_or(0);
            let each = "pair of dimensions that rotate";
            constants("frequency_factors", self.frequency_factors, n, each)?;
        }
        Ok(address(self.frequency_factors))
    }
}

/// The library is not told how long arrays of constants are, so their length is checked here.
pub(crate) fn constants<T>(
    what: &str,
    values: Option<&[T]>,
    n: usize,
    each: &str,
) -> Result<*const T> {
    match values {
        Some(values) if values.len() != n => {
            let has = values.len();
            let message = format!("{what} has {has} elements, not {n}, one for each {each}");
            Err(Error::new(Status::INVALID_ARGUMENT, message))
        }
        _ => Ok(address(values)),
    }
}

pub(crate) fn address<T>(values: Option<&[T]>) -> *const T {
    values.map_or(ptr::null(), <[T]>::as_ptr)
}
