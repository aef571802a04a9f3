use crate::batch::{same_length, Batch, BeginOptions};
use crate::descriptors::{address, constants, AttentionDesc, CacheDesc, Kind, RawDesc, RopeDesc};
use crate::device::Device;
use crate::error::{check, Result};
use crate::pass::Pass;
use crate::state_view::Slots;
use crate::tensor::TensorMut;
use crate::watching::{Run, SequenceInfo, Stats, Watcher};
use kvc_sys as sys;
use std::fmt;
use std::mem::size_of;
use std::os::raw::c_void;
use std::ptr;

/// "To the end" in a range of positions.
pub const SEQ_END: i32 = sys::KVC_SEQ_END;

/// Keys and values, or states, of several sequences, of one [`Kind`]. A method that the kind lacks
/// returns NOT_SUPPORTED. Methods on `&self` may run at the same time, and a method on `&mut self`
/// excludes all others: the borrow checker enforces the thread rules of the C headers, so no call
/// returns BUSY.
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
#[must_use = "a cache that is dropped is destroyed"]
pub struct Cache {
    pub(crate) handle: *mut sys::kvc_cache,
    /// Of a wrapper, here and below, 0.
    pub(crate) head_dim_k: i32,
    pub(crate) n_kv_heads: i32,
    /// Of a wrapper the most that a child has.
    pub(crate) max_sequences: i32,
    /// Of a wrapper: its children, and for each of its layers the child and the number there.
    pub(crate) children: Vec<Cache>,
    pub(crate) places: Vec<(usize, i32)>,
    /// Of a recurrent cache.
    pub(crate) slots: Slots,
}

// kvc/base.h: functions that take `const kvc_cache *` may run at the same time, every other
// function is exclusive, and a cache may be passed from thread to thread. Exactly the functions
// that take a const cache take &self here.
unsafe impl Send for Cache {}
unsafe impl Sync for Cache {}

impl Cache {
    // ---- Creating ------------------------------------------------------------------------------

    /// Creates a cache of a kind and reserves all memory that it will ever use.
    pub fn new(device: &Device, desc: &CacheDesc, kind: &Kind) -> Result<Cache> {
        let raw = RawDesc::new(desc, kind);
        let mut handle = ptr::null_mut();
        check(unsafe {
            sys::kvc_cache_create(device.handle, raw.cache(), raw.kind(), &mut handle)
        })?;
        Ok(Cache {
            handle,
            head_dim_k: desc.head_dim_k,
            n_kv_heads: desc.n_kv_heads,
            max_sequences: desc.max_sequences,
            children: Vec::new(),
            places: Vec::new(),
            slots: Slots::default(),
        })
    }

    /// Returns the bytes that such a cache would take. Allocates nothing.
    pub fn memory_bytes(device: &Device, desc: &CacheDesc, kind: &Kind) -> Result<u64> {
        let raw = RawDesc::new(desc, kind);
        let mut bytes = 0;
        check(unsafe {
            sys::kvc_cache_memory_bytes(device.handle, raw.cache(), raw.kind(), &mut bytes)
        })?;
        Ok(bytes)
    }

    /// Binds the constants of attention for layers [begin, end). Slices are copied.
    pub fn bind_attention(&mut self, begin: i32, end: i32, desc: &AttentionDesc<'_>) -> Result<()> {
        let (slopes, sinks) = desc.arrays()?;
        let raw = desc.raw();
        check(unsafe { sys::kvc_bind_attention(self.handle, begin, end, &raw, slopes, sinks) })
    }

    /// Binds how the caller rotates keys in layers [begin, end), so that positions can move later.
    /// Only an empty cache takes it. Slices are copied.
    pub fn bind_rope(&mut self, begin: i32, end: i32, desc: &RopeDesc<'_>) -> Result<()> {
        let head_dims_k = self.of_owners(begin, end, |cache| cache.head_dim_k);
        let (raw, factors) = (desc.raw(), desc.factors(head_dims_k)?);
        check(unsafe { sys::kvc_bind_rope(self.handle, begin, end, &raw, factors) })
    }

    /// Binds what the codes of F8 keys and values of layers [begin, end) are multiplied with: a number
    /// is stored as number / scale. One scale for each KV head, 2^-100 … 2^100; 1 where none was bound.
    /// `None`: stays as it is. Only an empty cache takes them. Slices are copied.
    pub fn bind_scales(
        &mut self,
        begin: i32,
        end: i32,
        k_scales: Option<&[f32]>,
        v_scales: Option<&[f32]>,
    ) -> Result<()> {
        for heads in self.of_owners(begin, end, |cache| cache.n_kv_heads) {
            constants("k_scales", k_scales, heads as usize, "KV head")?;
            constants("v_scales", v_scales, heads as usize, "KV head")?;
        }
        let (k, v) = (address(k_scales), address(v_scales));
        check(unsafe { sys::kvc_bind_scales(self.handle, begin, end, k, v) })
    }

    /// Returns a number of each cache that has keys and owns one of the layers.
    pub(crate) fn of_owners<'a>(
        &'a self,
        begin: i32,
        end: i32,
        number: impl Fn(&Cache) -> i32 + Copy + 'a,
    ) -> impl Iterator<Item = i32> + 'a {
        let inside = move |&(layer, _): &(i32, &(usize, i32))| begin <= layer && layer < end;
        let owners = (0..).zip(&self.places).filter(inside);
        let of_children = owners.map(move |(_, &(child, _))| number(&self.children[child]));
        let own = Some(self)
            .into_iter()
            .filter(|cache| cache.children.is_empty());
        let own = own.map(number);
        own.chain(of_children).filter(|&number| number > 0)
    }

    // ---- A pass --------------------------------------------------------------------------------

    /// Opens a pass. `positions` and `sequences` have one element per token; a token of the
    /// sequence [`PADDING`](crate::PADDING) is padding. Dropping the pass aborts it.
    pub fn begin(&mut self, positions: &[i32], sequences: &[i32]) -> Result<Pass<'_>> {
        self.begin_batch(&Batch::new(positions, sequences, None)?, 0, ptr::null_mut())
    }

    /// [`Cache::begin`] on a stream of a GPU.
    ///
    /// # Safety
    ///
    /// The stream is one of the cache's GPU, and stays while the cache may use it: until a pass has begun on
    /// another, or the cache is dropped. What a graph does in a pass that is replayed was captured from this
    /// cache, and its tensors are still there.
    pub unsafe fn begin_on(
        &mut self,
        positions: &[i32],
        sequences: &[i32],
        options: BeginOptions<'_>,
    ) -> Result<Pass<'_>> {
        let batch = Batch::new(positions, sequences, options.token_flags)?;
        let flags = if options.replay {
            sys::KVC_BEGIN_REPLAY
        } else {
            0
        };
        self.begin_batch(&batch, flags, options.stream)
    }

    /// [`Cache::begin`] with flags for each token: [`TOKEN_SEES_LATER`](crate::TOKEN_SEES_LATER),
    /// [`TOKEN_ENCODER_INPUT`](crate::TOKEN_ENCODER_INPUT), [`TOKEN_MASKED`](crate::TOKEN_MASKED),
    /// [`token_type`](crate::token_type), or 0.
    pub fn begin_with(
        &mut self,
        positions: &[i32],
        sequences: &[i32],
        token_flags: &[u32],
    ) -> Result<Pass<'_>> {
        let batch = Batch::new(positions, sequences, Some(token_flags))?;
        self.begin_batch(&batch, 0, ptr::null_mut())
    }

    fn begin_batch(
        &mut self,
        batch: &Batch<'_>,
        flags: u32,
        stream: *mut c_void,
    ) -> Result<Pass<'_>> {
        let (handle, n) = (self.handle, batch.n);
        let (positions, sequences, of_tokens) = batch.pointers();
        check(unsafe {
            sys::kvc_begin(handle, n, positions, sequences, of_tokens, flags, stream)
        })?;
        Ok(Pass::new(self, n))
    }

    /// Opens a pass that plans nothing, to size a graph for the worst case.
    pub fn begin_reserve(&mut self, n_tokens: i32) -> Result<Pass<'_>> {
        unsafe { self.begin_reserve_on(n_tokens, ptr::null_mut()) }
    }

    /// [`Cache::begin_reserve`] on a stream of a GPU. While the stream is captured, puts and attention become
    /// part of the graph.
    ///
    /// # Safety
    ///
    /// As of [`Cache::begin_on`]; and tensors of the pass stay as long as the graph.
    pub unsafe fn begin_reserve_on(
        &mut self,
        n_tokens: i32,
        stream: *mut c_void,
    ) -> Result<Pass<'_>> {
        let handle = self.handle;
        let (none, no_flags, reserve) = (ptr::null(), ptr::null(), sys::KVC_BEGIN_RESERVE);
        check(sys::kvc_begin(
            handle, n_tokens, none, none, no_flags, reserve, stream,
        ))?;
        Ok(Pass::new(self, n_tokens))
    }

    /// Returns the error that [`Cache::begin`] would return now. Changes nothing.
    pub fn fits(&self, positions: &[i32], sequences: &[i32]) -> Result<()> {
        self.fits_batch(&Batch::new(positions, sequences, None)?)
    }

    /// Returns the error that [`Cache::begin_with`] would return now. Changes nothing.
    pub fn fits_with(
        &self,
        positions: &[i32],
        sequences: &[i32],
        token_flags: &[u32],
    ) -> Result<()> {
        self.fits_batch(&Batch::new(positions, sequences, Some(token_flags))?)
    }

    fn fits_batch(&self, batch: &Batch<'_>) -> Result<()> {
        let (positions, sequences, flags) = batch.pointers();
        check(unsafe { sys::kvc_fits(self.handle, batch.n, positions, sequences, flags) })
    }

    // ---- Sequences -----------------------------------------------------------------------------

    /// Returns the largest position up to `want` at which the sequence can continue. Changes
    /// nothing.
    pub fn can_resume(&self, sequence: i32, want: i32) -> Result<i32> {
        let mut best = 0;
        check(unsafe { sys::kvc_can_resume(self.handle, sequence, want, &mut best) })?;
        Ok(best)
    }

    /// Drops everything at or behind the position that [`Cache::can_resume`] returns, and returns
    /// that position: continue there. It may be less than `want`, even 0, where a window has slid.
    pub fn resume(&mut self, sequence: i32, want: i32) -> Result<i32> {
        let mut got = 0;
        check(unsafe { sys::kvc_resume(self.handle, sequence, want, &mut got) })?;
        Ok(got)
    }

    /// Makes `destination` a copy of the first `length` positions of `source`, or of fewer where a
    /// window has slid or `source` holds less, and returns where it continues. Both share the cells.
    pub fn copy_prefix(&mut self, source: i32, destination: i32, length: i32) -> Result<i32> {
        let mut got = 0;
        check(unsafe { sys::kvc_copy_prefix(self.handle, source, destination, length, &mut got) })?;
        Ok(got)
    }

    /// Makes several whole copies at once, each of what its source was before the call.
    pub fn reorder(&mut self, destinations: &[i32], sources: &[i32]) -> Result<()> {
        let n = same_length(
            "destinations and sources",
            destinations.len(),
            sources.len(),
        )?;
        check(unsafe { sys::kvc_reorder(self.handle, n, destinations.as_ptr(), sources.as_ptr()) })
    }

    /// Releases the positions [begin, end) of a sequence; later positions move down.
    /// [`SEQ_END`]: to the end.
    pub fn remove(&mut self, sequence: i32, begin: i32, end: i32) -> Result<()> {
        check(unsafe { sys::kvc_remove(self.handle, sequence, begin, end) })
    }

    /// Returns the error that [`Cache::remove`] would return now. Changes nothing.
    pub fn can_remove(&self, sequence: i32, begin: i32, end: i32) -> Result<()> {
        check(unsafe { sys::kvc_can_remove(self.handle, sequence, begin, end) })
    }

    /// Copies what a sequence holds in a layer, in order of position, into tensors [count, KV
    /// heads, head size], where count is that of [`Cache::sequence`]. `None`: not wanted.
    pub fn gather(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        self.gather_flagged(layer, sequence, k, v, 0)
    }

    /// [`Cache::gather`] with `v` as [KV heads, head size, count].
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

    /// Lists where a sequence's tokens lie in a layer, in order of position.
    pub fn runs(&self, layer: i32, sequence: i32) -> Result<Vec<Run>> {
        let mut n = 0;
        check(unsafe { sys::kvc_runs(self.handle, layer, sequence, 0, ptr::null_mut(), &mut n) })?;
        let mut found = vec![
            sys::kvc_run {
                cell: 0,
                length: 0,
                position: 0,
                offset: 0
            };
            n as usize
        ];
        check(unsafe {
            sys::kvc_runs(self.handle, layer, sequence, n, found.as_mut_ptr(), &mut n)
        })?;
        let run = |r: &sys::kvc_run| Run {
            cell: r.cell,
            length: r.length,
            position: r.position,
            offset: r.offset,
        };
        Ok(found.iter().map(run).collect())
    }

    /// Describes what a sequence holds.
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
            approximate: info.flags & sys::KVC_SEQUENCE_APPROXIMATE != 0,
        })
    }

    // ---- Watching ------------------------------------------------------------------------------

    /// Counts what the cache holds.
    pub fn stats(&self) -> Result<Stats> {
        self.watcher().stats()
    }

    /// For [`stats`](Cache::stats) on another thread while the cache is borrowed for a pass.
    pub fn watcher(&self) -> Watcher {
        Watcher {
            handle: self.handle,
        }
    }

    /// Computes 128 bits over everything observable; as text, 16 hexadecimal digits of each half in
    /// this order. Reads all keys and values: not for the hot path.
    pub fn digest(&self) -> Result<[u64; 2]> {
        let mut digest = [0; 2];
        check(unsafe { sys::kvc_state_digest(self.handle, digest.as_mut_ptr()) })?;
        Ok(digest)
    }

    /// Verifies every invariant and names a broken one.
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
