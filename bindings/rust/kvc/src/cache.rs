use crate::descriptors::{constants, AttentionDesc, CacheDesc, CausalDesc, RopeDesc, RopePairs};
use crate::device::Device;
use crate::error::{check, Error, Result, Status};
use crate::pass::Pass;
use crate::tensor::TensorMut;
use crate::watching::{Run, SequenceInfo, State, Stats};
use kvc_sys as sys;
use std::fmt;
use std::mem::size_of;
use std::os::raw::c_void;
use std::ptr;

/// "To the end" in a range of positions.
pub const SEQ_END: i32 = sys::KVC_SEQ_END;

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
    pub(crate) handle: *mut sys::kvc_cache,
    head_dim_k: usize,
}

// kvc/base.h: "functions that take const kvc_cache * overlap freely; every other function is exclusive", and "a cache may
// move between threads". Exactly the functions with a const cache take &self here.
unsafe impl Send for Cache {}
unsafe impl Sync for Cache {}

/// The length of two slices that belong together.
pub(crate) fn together(what: &str, a: usize, b: usize) -> Result<i32> {
    if a != b {
        return Err(Error::new(
            Status::INVALID_ARGUMENT,
            format!("{what} have {a} and {b} elements"),
        ));
    }
    i32::try_from(a).map_err(|_| Error::new(Status::INVALID_ARGUMENT, format!("{a} elements")))
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
    pub fn bind_attention(
        &mut self,
        layer_begin: i32,
        layer_end: i32,
        desc: &AttentionDesc<'_>,
    ) -> Result<()> {
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
        check(unsafe {
            sys::kvc_bind_attention(self.handle, layer_begin, layer_end, &raw, slopes, sinks)
        })
    }

    /// Tells how the caller rotates, so that positions can move afterwards. Slices are copied.
    pub fn bind_rope(
        &mut self,
        layer_begin: i32,
        layer_end: i32,
        desc: &RopeDesc<'_>,
    ) -> Result<()> {
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
        check(unsafe {
            sys::kvc_begin(
                self.handle,
                n,
                positions,
                sequences,
                ptr::null(),
                0,
                ptr::null_mut(),
            )
        })?;
        Ok(Pass::new(self))
    }

    /// Opens a pass that plans nothing, to size a graph for the worst case.
    pub fn begin_reserve(&mut self, n_tokens: i32) -> Result<Pass<'_>> {
        let none = ptr::null();
        let flags = sys::KVC_BEGIN_RESERVE;
        check(unsafe {
            sys::kvc_begin(
                self.handle,
                n_tokens,
                none,
                none,
                ptr::null(),
                flags,
                ptr::null_mut(),
            )
        })?;
        Ok(Pass::new(self))
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
        let n = together(
            "destinations and sources",
            destinations.len(),
            sources.len(),
        )?;
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
