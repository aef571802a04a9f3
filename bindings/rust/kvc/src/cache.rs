use crate::error::{check, Error, Result, Status};
use crate::tensor::{empty, DType, Tensor, TensorMut, View};
use kvc_sys as sys;
use std::ffi::CString;
use std::fmt;
use std::mem::size_of;
use std::ops::{Deref, Range};
use std::os::raw::c_void;
use std::ptr;

/// "To the end" in a range of positions.
pub const SEQ_END: i32 = sys::KVC_SEQ_END;

/// For [`CausalDesc::memory`]: keep every position, however short the reach.
pub const UNLIMITED: i32 = sys::KVC_NONE;

// ---- Device ----------------------------------------------------------------------------------------------------------

/// Where memory lies and how many threads work. Caches keep what they need of it: it may be dropped before them.
pub struct Device {
    handle: *mut sys::kvc_device,
}

// kvc/device.h: "Threads: any." The handle is a key of a table that has a lock of its own.
unsafe impl Send for Device {}
unsafe impl Sync for Device {}

impl Device {
    /// `name` "cpu". `n_threads` share one attention call, the caller's included; 0: as many as the process is allowed.
    /// VERSION: the library that was loaded is not of the minor version that this crate declares.
    pub fn open(name: &str, n_threads: i32) -> Result<Device> {
        compatible(crate::version_number())?;
        let name = CString::new(name)
            .map_err(|_| Error::new(Status::INVALID_ARGUMENT, "the name holds a zero byte".to_string()))?;
        let desc = sys::kvc_device_desc {
            struct_size: size_of::<sys::kvc_device_desc>() as u32,
            n_threads,
            flags: 0,
        };
        let mut handle = ptr::null_mut();
        check(unsafe { sys::kvc_device_open(name.as_ptr(), &desc, ptr::null(), &mut handle) })?;
        Ok(Device { handle })
    }
}

/// Structs and functions of another minor version may differ from what kvc-sys declares.
fn compatible(library: u32) -> Result<()> {
    let (declared, text) = (sys::KVC_VERSION_NUMBER, |v: u32| {
        format!("{}.{}", v >> 16, v >> 8 & 0xff)
    });
    if library >> 8 == declared >> 8 {
        return Ok(());
    }
    let message = format!("compiled for kvc {}, loaded kvc {}", text(declared), text(library));
    Err(Error::new(Status::VERSION, message))
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        unsafe { sys::kvc_device_close(self.handle) };
    }
}

// ---- Descriptions ----------------------------------------------------------------------------------------------------

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
    fn raw(&self) -> sys::kvc_cache_desc {
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
    fn raw(&self) -> sys::kvc_causal_desc {
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

/// What a sequence holds. See `kvc_sequence_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceInfo {
    pub first: i32,
    pub next: i32,
    pub count: i32,
    pub room: i32,
    pub lost_below: i32,
}

/// A row of cells that hold consecutive positions. See `kvc_run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub cell: i32,
    pub length: i32,
    pub position: i32,
    pub offset: i32,
}

/// What a cache is doing. A number and not an enum: a later library may answer with one of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State(pub u32);

impl State {
    pub const IDLE: State = State(sys::KVC_STATE_IDLE);
    /// A pass is open.
    pub const PASS: State = State(sys::KVC_STATE_PASS);
    /// A pass of [`Cache::begin_reserve`] is open.
    pub const RESERVE: State = State(sys::KVC_STATE_RESERVE);
    /// After DEVICE or INTERNAL: the cache is of no more use.
    pub const POISONED: State = State(sys::KVC_STATE_POISONED);
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            State::IDLE => f.write_str("IDLE"),
            State::PASS => f.write_str("PASS"),
            State::RESERVE => f.write_str("RESERVE"),
            State::POISONED => f.write_str("POISONED"),
            State(number) => write!(f, "State({number})"),
        }
    }
}

/// What a cache holds. See `kvc_stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub state: State,
    pub cells: u64,
    pub cells_used: u64,
    pub cells_shared: u64,
    pub bytes: u64,
    pub passes: u64,
}

// ---- Cache -----------------------------------------------------------------------------------------------------------

/// Keys and values of several sequences. Methods on `&self` may overlap, those on `&mut self` exclude all others: the
/// borrow checker enforces the thread rules of the C headers, and BUSY cannot happen.
///
/// While a pass is open its cache is borrowed:
///
/// ```compile_fail
/// # fn f(mut cache: kvc::Cache) -> kvc::Result<()> {
/// let mut pass = cache.begin(&[0], &[0])?;
/// cache.remove(0, 0, kvc::SEQ_END)?; // would end the pass
/// pass.commit()
/// # }
/// ```
pub struct Cache {
    handle: *mut sys::kvc_cache,
    head_dim_k: usize,
}

// kvc/base.h: "functions that take const kvc_cache * overlap freely; every other function is exclusive", and "a cache may
// move between threads". Exactly the functions with a const cache take &self here.
unsafe impl Send for Cache {}
unsafe impl Sync for Cache {}

fn pointer<T>(values: Option<&[T]>) -> *const T {
    values.map_or(ptr::null(), <[T]>::as_ptr)
}

/// The length of two slices that belong together.
fn together(what: &str, a: usize, b: usize) -> Result<i32> {
    if a != b {
        return Err(Error::new(
            Status::INVALID_ARGUMENT,
            format!("{what} have {a} and {b} elements"),
        ));
    }
    i32::try_from(a).map_err(|_| Error::new(Status::INVALID_ARGUMENT, format!("{a} elements")))
}

/// The library trusts the length of constants.
fn constants(what: &str, values: Option<&[f32]>, n: usize) -> Result<*const f32> {
    match values {
        Some(values) if values.len() != n => {
            let message = format!("{what} has {} elements where {n} belong", values.len());
            Err(Error::new(Status::INVALID_ARGUMENT, message))
        }
        _ => Ok(pointer(values)),
    }
}

impl Cache {
    /// Reserves all memory that the cache will ever use.
    pub fn new(device: &Device, desc: &CacheDesc, causal: &CausalDesc) -> Result<Cache> {
        let (raw, raw_causal) = (desc.raw(), causal.raw());
        let mut handle = ptr::null_mut();
        let kind_desc = &raw_causal as *const sys::kvc_causal_desc as *const c_void;
        check(unsafe { sys::kvc_cache_create(device.handle, &raw, kind_desc, &mut handle) })?;
        Ok(Cache {
            handle,
            head_dim_k: raw.head_dim_k as usize,
        })
    }

    /// The bytes that such a cache would take; allocates nothing.
    pub fn memory_bytes(device: &Device, desc: &CacheDesc, causal: &CausalDesc) -> Result<u64> {
        let (raw, raw_causal) = (desc.raw(), causal.raw());
        let mut bytes = 0;
        let kind_desc = &raw_causal as *const sys::kvc_causal_desc as *const c_void;
        check(unsafe { sys::kvc_cache_memory_bytes(device.handle, &raw, kind_desc, &mut bytes) })?;
        Ok(bytes)
    }

    /// Binds how layers [layer_begin, layer_end) attend. Slices are copied.
    pub fn bind_attention(&mut self, layer_begin: i32, layer_end: i32, desc: &AttentionDesc<'_>) -> Result<()> {
        let n = usize::try_from(desc.n_q_heads).unwrap_or(0);
        let slopes = constants("alibi_slopes", desc.alibi_slopes, n)?;
        let sinks = constants("sinks", desc.sinks, n)?;
        let raw = sys::kvc_attention_desc {
            struct_size: size_of::<sys::kvc_attention_desc>() as u32,
            n_q_heads: desc.n_q_heads,
            scale: desc.scale,
            softcap: desc.softcap,
            flags: 0,
        };
        check(unsafe { sys::kvc_bind_attention(self.handle, layer_begin, layer_end, &raw, slopes, sinks) })
    }

    /// Tells how the caller rotates, so that positions can move afterwards. Slices are copied.
    pub fn bind_rope(&mut self, layer_begin: i32, layer_end: i32, desc: &RopeDesc<'_>) -> Result<()> {
        let turned = if desc.n_dims == 0 {
            self.head_dim_k
        } else {
            usize::try_from(desc.n_dims).unwrap_or(0)
        };
        let factors = constants("frequency_factors", desc.frequency_factors, turned / 2)?;
        let raw = sys::kvc_rope_desc {
            struct_size: size_of::<sys::kvc_rope_desc>() as u32,
            pairs: match desc.pairs {
                RopePairs::Neighbours => sys::KVC_ROPE_NEIGHBOURS,
                RopePairs::Halves => sys::KVC_ROPE_HALVES,
            },
            n_dims: desc.n_dims,
            base: desc.base,
            scale: desc.scale,
        };
        check(unsafe { sys::kvc_bind_rope(self.handle, layer_begin, layer_end, &raw, factors) })
    }

    /// Opens a pass; `positions` and `sequences` have one element per token. Dropping the pass aborts it.
    pub fn begin(&mut self, positions: &[i32], sequences: &[i32]) -> Result<Pass<'_>> {
        let n = together("positions and sequences", positions.len(), sequences.len())?;
        let (positions, sequences) = (positions.as_ptr(), sequences.as_ptr());
        check(unsafe { sys::kvc_begin(self.handle, n, positions, sequences, ptr::null(), 0, ptr::null_mut()) })?;
        Ok(Pass {
            cache: self,
            open: true,
        })
    }

    /// Opens a pass that plans nothing, to size a graph for the worst case.
    pub fn begin_reserve(&mut self, n_tokens: i32) -> Result<Pass<'_>> {
        let none = ptr::null();
        let flags = sys::KVC_BEGIN_RESERVE;
        check(unsafe { sys::kvc_begin(self.handle, n_tokens, none, none, ptr::null(), flags, ptr::null_mut()) })?;
        Ok(Pass {
            cache: self,
            open: true,
        })
    }

    /// The error that `begin` would return now. Nothing changes.
    pub fn fits(&self, positions: &[i32], sequences: &[i32]) -> Result<()> {
        let n = together("positions and sequences", positions.len(), sequences.len())?;
        check(unsafe { sys::kvc_fits(self.handle, n, positions.as_ptr(), sequences.as_ptr()) })
    }

    /// The largest position up to `want` at which the sequence can continue. Nothing changes.
    pub fn can_resume(&self, sequence: i32, want: i32) -> Result<i32> {
        let mut best = 0;
        check(unsafe { sys::kvc_can_resume(self.handle, sequence, want, &mut best) })?;
        Ok(best)
    }

    /// Drops what lies at or behind that position and returns it.
    pub fn resume(&mut self, sequence: i32, want: i32) -> Result<i32> {
        let mut got = 0;
        check(unsafe { sys::kvc_resume(self.handle, sequence, want, &mut got) })?;
        Ok(got)
    }

    /// Makes `destination` share the first tokens of `source` and returns where it continues.
    pub fn copy_prefix(&mut self, source: i32, destination: i32, length: i32) -> Result<i32> {
        let mut got = 0;
        check(unsafe { sys::kvc_copy_prefix(self.handle, source, destination, length, &mut got) })?;
        Ok(got)
    }

    /// Makes several whole copies at once, each source as it was before the call.
    pub fn reorder(&mut self, destinations: &[i32], sources: &[i32]) -> Result<()> {
        let n = together("destinations and sources", destinations.len(), sources.len())?;
        check(unsafe { sys::kvc_reorder(self.handle, n, destinations.as_ptr(), sources.as_ptr()) })
    }

    /// Releases the positions [begin, end) of a sequence; later ones move down. [`SEQ_END`]: to the end.
    pub fn remove(&mut self, sequence: i32, begin: i32, end: i32) -> Result<()> {
        check(unsafe { sys::kvc_remove(self.handle, sequence, begin, end) })
    }

    /// Copies what a sequence holds in a layer, in order of position: [count, KV heads, head size], where count is that of
    /// [`Cache::sequence`]. `None`: not wanted.
    pub fn gather(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.gather_flagged(layer, sequence, k, v, 0)
    }

    /// `gather` with `v` as [KV heads, head size, count].
    pub fn gather_transposed(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.gather_flagged(layer, sequence, k, v, sys::KVC_TENSOR_TRANSPOSED)
    }

    fn gather_flagged(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
        v_flags: u32,
    ) -> Result<()> {
        let (mut k, mut v) = (k.map(|k| k.raw), v.map(|v| v.raw));
        if let Some(v) = v.as_mut() {
            v.flags = v_flags;
        }
        let k = k.as_mut().map_or(ptr::null_mut(), |k| k as *mut _);
        let v = v.as_mut().map_or(ptr::null_mut(), |v| v as *mut _);
        check(unsafe { sys::kvc_gather(self.handle, layer, sequence, k, v) })
    }

    /// Where a sequence's tokens lie, in order of position.
    pub fn runs(&self, sequence: i32) -> Result<Vec<Run>> {
        let mut n = 0;
        check(unsafe { sys::kvc_runs(self.handle, sequence, 0, ptr::null_mut(), &mut n) })?;
        let mut found = vec![
            sys::kvc_run {
                cell: 0,
                length: 0,
                position: 0,
                offset: 0
            };
            n as usize
        ];
        check(unsafe { sys::kvc_runs(self.handle, sequence, n, found.as_mut_ptr(), &mut n) })?;
        let run = |r: &sys::kvc_run| Run {
            cell: r.cell,
            length: r.length,
            position: r.position,
            offset: r.offset,
        };
        Ok(found.iter().map(run).collect())
    }

    /// What a sequence holds.
    pub fn sequence(&self, sequence: i32) -> Result<SequenceInfo> {
        let mut info = sys::kvc_sequence_info {
            struct_size: size_of::<sys::kvc_sequence_info>() as u32,
            flags: 0,
            first: 0,
            next: 0,
            count: 0,
            room: 0,
            lost_below: 0,
            reserved: 0,
        };
        check(unsafe { sys::kvc_sequence_query(self.handle, sequence, &mut info) })?;
        Ok(SequenceInfo {
            first: info.first,
            next: info.next,
            count: info.count,
            room: info.room,
            lost_below: info.lost_below,
        })
    }

    /// Counts what the cache holds.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = sys::kvc_stats {
            struct_size: size_of::<sys::kvc_stats>() as u32,
            state: 0,
            cells: 0,
            cells_used: 0,
            cells_shared: 0,
            bytes: 0,
            passes: 0,
        };
        check(unsafe { sys::kvc_cache_stats(self.handle, &mut stats) })?;
        Ok(Stats {
            state: State(stats.state),
            cells: stats.cells,
            cells_used: stats.cells_used,
            cells_shared: stats.cells_shared,
            bytes: stats.bytes,
            passes: stats.passes,
        })
    }

    /// 128 bits over everything observable; as text, 16 hexadecimal digits of each half in this order. Reads all keys and
    /// values: not for the hot path.
    pub fn digest(&self) -> Result<[u64; 2]> {
        let mut digest = [0; 2];
        check(unsafe { sys::kvc_state_digest(self.handle, digest.as_mut_ptr()) })?;
        Ok(digest)
    }

    /// Walks every invariant and names the broken one.
    pub fn check(&self) -> Result<()> {
        check(unsafe { sys::kvc_check(self.handle) })
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Cache");
        if let Ok(stats) = self.stats() {
            text.field("state", &stats.state);
            text.field("cells", &stats.cells);
            text.field("cells_used", &stats.cells_used);
        }
        text.finish_non_exhaustive()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        unsafe { sys::kvc_cache_destroy(self.handle) };
    }
}

// ---- Pass ------------------------------------------------------------------------------------------------------------

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

impl Pass<'_> {
    /// Stores one layer's keys and values [n tokens, KV heads, head size].
    pub fn put(&mut self, layer: i32, k: Tensor<'_>, v: Tensor<'_>) -> Result<()> {
        check(unsafe { sys::kvc_put(self.cache.handle, layer, &k.raw, &v.raw) })
    }

    /// Attention of the queries [n tokens, query heads, head size], written to `out`.
    pub fn attention(&mut self, layer: i32, q: Tensor<'_>, mut out: TensorMut<'_>) -> Result<()> {
        check(unsafe { sys::kvc_attention(self.cache.handle, layer, &q.raw, &mut out.raw, ptr::null_mut()) })
    }

    /// `attention` that also writes the log of the sum of exponentials, [n tokens, query heads].
    pub fn attention_lse(
        &mut self,
        layer: i32,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut lse: TensorMut<'_>,
    ) -> Result<()> {
        check(unsafe { sys::kvc_attention(self.cache.handle, layer, &q.raw, &mut out.raw, &mut lse.raw) })
    }

    /// `attention` with what `extra` holds.
    pub fn attention_with(
        &mut self,
        layer: i32,
        q: Tensor<'_>,
        mut out: TensorMut<'_>,
        mut extra: AttentionExtra<'_>,
    ) -> Result<()> {
        let read = |t: &Option<Tensor<'_>>| t.as_ref().map_or(ptr::null(), |t| &t.raw as *const sys::kvc_tensor);
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
        check(unsafe { sys::kvc_attention_with(handle, layer, &q.raw, &mut out.raw, lse, &pointers) })
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
        check(unsafe { sys::kvc_put_attention(handle, layer, &k.raw, &v.raw, &q.raw, &mut out.raw, none) })
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
        check(unsafe { sys::kvc_put_attention(handle, layer, &k.raw, &v.raw, &q.raw, &mut out.raw, &mut lse.raw) })
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
        check(unsafe { sys::kvc_commit_prefix(self.cache.handle, n, sequences.as_ptr(), keep.as_ptr()) })?;
        self.open = false;
        Ok(())
    }

    /// Forgets the pass, as dropping it does: the cache is as it was before `begin`.
    pub fn abort(mut self) -> Result<()> {
        self.open = false;
        check(unsafe { sys::kvc_abort(self.cache.handle) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_minor_versions_are_refused() {
        let version = sys::KVC_VERSION_NUMBER;
        assert!(compatible(version).is_ok() && compatible(version + 1).is_ok()); // a patch changes no struct
        for library in [version + 0x100, version + 0x10000, 12 << 16 | 34 << 8] {
            assert_eq!(compatible(library).unwrap_err().status, Status::VERSION);
        }
        let message = compatible(12 << 16 | 34 << 8).unwrap_err().message;
        assert!(message.ends_with(", loaded kvc 12.34"), "{message}");
    }
}
