//! The C ABI of kvc, declared by hand, with its names: what `kvc/kvc.h` declares, `kvc/rows.h`,
//! `kvc/transformer.h`, `kvc/lightning.h`, `kvc/operators.h` and `kvc/metadata.h`. The headers are the
//! manual.
//!
//! `tests/layout.rs` compares all of this with the golden lists of the C headers in `tests/abi`.
//! Statuses and other constants are integers, never Rust enums: a later library may return a number
//! that this crate does not know.
#![allow(non_camel_case_types)]

mod constants;
mod kinds;
mod operators;
mod rows;
mod storage;
pub use constants::*;
pub use kinds::*;
pub use operators::*;
pub use rows::*;
pub use storage::*;

use std::marker::{PhantomData, PhantomPinned};
use std::os::raw::{c_char, c_void};

/// 0 is success, errors are negative.
pub type kvc_status = i32;

/// A handle: a key of a table, never dereferenced.
#[repr(C)]
pub struct kvc_device {
    _opaque: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// A handle: a key of a table, never dereferenced.
#[repr(C)]
pub struct kvc_cache {
    _opaque: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_tensor {
    pub data: *mut c_void,
    pub byte_offset: u64,
    pub shape: [i64; KVC_MAX_DIMS],
    pub strides: [i64; KVC_MAX_DIMS],
    pub ndim: i32,
    pub dtype: u32,
    pub device_type: i32,
    pub device_id: i32,
    pub flags: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_device_desc {
    pub struct_size: u32,
    pub n_threads: i32,
    pub flags: u64,
    pub device_allocator: *const kvc_allocator,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_allocator {
    pub user: *mut c_void,
    pub alloc: Option<
        unsafe extern "C" fn(user: *mut c_void, bytes: usize, alignment: usize) -> *mut c_void,
    >,
    pub free: Option<
        unsafe extern "C" fn(user: *mut c_void, block: *mut c_void, bytes: usize, alignment: usize),
    >,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_cache_desc {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u64,
    pub n_layers: i32,
    pub n_kv_heads: i32,
    pub head_dim_k: i32,
    pub head_dim_v: i32,
    pub dtype_k: u32,
    pub dtype_v: u32,
    pub max_sequences: i32,
    pub capacity: i32,
    pub max_batch: i32,
    pub cells: i32,
    pub max_q_heads: i32,
    pub block_k: i32,
    pub block_v: i32,
    pub v_first: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_causal_desc {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u32,
    pub reach: i32,
    pub memory: i32,
    pub chunk: i32,
    pub keep_first: i32,
    pub cell_padding: i32,
    pub mask_dtype: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_sequence_info {
    pub struct_size: u32,
    pub flags: u32,
    pub first: i32,
    pub next: i32,
    pub count: i32,
    pub room: i32,
    pub lost_below: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_stats {
    pub struct_size: u32,
    pub state: u32,
    pub cells: u64,
    pub cells_used: u64,
    pub cells_shared: u64,
    pub bytes: u64,
    pub passes: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_attention_desc {
    pub struct_size: u32,
    pub n_q_heads: i32,
    pub scale: f32,
    pub softcap: f32,
    pub flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_rope_desc {
    pub struct_size: u32,
    pub pairs: u32,
    pub n_dims: i32,
    pub base: f32,
    pub scale: f32,
    pub first_dim: i32,
}

/// Must not unwind and must not call the cache that it was bound to.
pub type kvc_shift_function = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        layer: i32,
        n: i32,
        from: *const i32,
        to: *const i32,
        k: *mut kvc_tensor,
    ) -> kvc_status,
>;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_attention_extra {
    pub struct_size: u32,
    pub flags: u32,
    pub bias: *const kvc_tensor,
    pub mask: *const kvc_tensor,
    pub weights: *mut kvc_tensor,
    pub lse: *mut kvc_tensor,
    pub dropout_seed: u64,
    pub first_position: *const i32,
    pub constants: *const kvc_attention_desc,
    pub alibi_slopes: *const f32,
    pub sinks: *const f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_run {
    pub cell: i32,
    pub length: i32,
    pub position: i32,
    pub offset: i32,
}

extern "C" {
    pub fn kvc_status_name(status: kvc_status) -> *const c_char;
    pub fn kvc_last_error_copy(buffer: *mut c_char, capacity: usize) -> usize;
    pub fn kvc_tensor_dense(
        data: *mut c_void,
        dtype: u32,
        ndim: i32,
        shape: *const i64,
        out: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_version_number() -> u32;
    pub fn kvc_build_info() -> *const c_char;
    pub fn kvc_device_open(
        name: *const c_char,
        desc: *const kvc_device_desc,
        allocator: *const kvc_allocator,
        out: *mut *mut kvc_device,
    ) -> kvc_status;
    pub fn kvc_device_close(device: *mut kvc_device) -> kvc_status;
    pub fn kvc_device_synchronize(device: *const kvc_device) -> kvc_status;
    pub fn kvc_cache_memory_bytes(
        device: *const kvc_device,
        desc: *const kvc_cache_desc,
        kind_desc: *const c_void,
        out_bytes: *mut u64,
    ) -> kvc_status;
    pub fn kvc_cache_create(
        device: *mut kvc_device,
        desc: *const kvc_cache_desc,
        kind_desc: *const c_void,
        out: *mut *mut kvc_cache,
    ) -> kvc_status;
    pub fn kvc_cache_destroy(cache: *mut kvc_cache) -> kvc_status;
    pub fn kvc_begin(
        cache: *mut kvc_cache,
        n_tokens: i32,
        position: *const i32,
        sequence: *const i32,
        token_flags: *const u32,
        flags: u32,
        stream: *mut c_void,
    ) -> kvc_status;
    pub fn kvc_fits(
        cache: *const kvc_cache,
        n_tokens: i32,
        position: *const i32,
        sequence: *const i32,
        token_flags: *const u32,
    ) -> kvc_status;
    pub fn kvc_put(
        cache: *mut kvc_cache,
        layer: i32,
        k: *const kvc_tensor,
        v: *const kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_set_causal(cache: *mut kvc_cache, n_except: i32, except: *const i32) -> kvc_status;
    pub fn kvc_commit(cache: *mut kvc_cache) -> kvc_status;
    pub fn kvc_commit_prefix(
        cache: *mut kvc_cache,
        n_sequences: i32,
        sequence: *const i32,
        keep: *const i32,
    ) -> kvc_status;
    pub fn kvc_abort(cache: *mut kvc_cache) -> kvc_status;
    pub fn kvc_can_resume(
        cache: *const kvc_cache,
        sequence: i32,
        want: i32,
        best: *mut i32,
    ) -> kvc_status;
    pub fn kvc_resume(cache: *mut kvc_cache, sequence: i32, want: i32, got: *mut i32)
        -> kvc_status;
    pub fn kvc_copy_prefix(
        cache: *mut kvc_cache,
        src: i32,
        dst: i32,
        len: i32,
        got: *mut i32,
    ) -> kvc_status;
    pub fn kvc_reorder(
        cache: *mut kvc_cache,
        n: i32,
        dst: *const i32,
        src: *const i32,
    ) -> kvc_status;
    pub fn kvc_remove(cache: *mut kvc_cache, sequence: i32, begin: i32, end: i32) -> kvc_status;
    pub fn kvc_can_remove(
        cache: *const kvc_cache,
        sequence: i32,
        begin: i32,
        end: i32,
    ) -> kvc_status;
    pub fn kvc_sequence_query(
        cache: *const kvc_cache,
        sequence: i32,
        out: *mut kvc_sequence_info,
    ) -> kvc_status;
    pub fn kvc_cache_stats(cache: *const kvc_cache, out: *mut kvc_stats) -> kvc_status;
    pub fn kvc_state_digest(cache: *const kvc_cache, out: *mut u64) -> kvc_status;
    pub fn kvc_check(cache: *const kvc_cache) -> kvc_status;
    pub fn kvc_bind_attention(
        cache: *mut kvc_cache,
        layer_begin: i32,
        layer_end: i32,
        desc: *const kvc_attention_desc,
        alibi_slopes: *const f32,
        sinks: *const f32,
    ) -> kvc_status;
    pub fn kvc_bind_rope(
        cache: *mut kvc_cache,
        layer_begin: i32,
        layer_end: i32,
        desc: *const kvc_rope_desc,
        frequency_factors: *const f32,
    ) -> kvc_status;
    pub fn kvc_bind_shift(
        cache: *mut kvc_cache,
        function: kvc_shift_function,
        user: *mut c_void,
    ) -> kvc_status;
    pub fn kvc_attention(
        cache: *mut kvc_cache,
        layer: i32,
        q: *const kvc_tensor,
        out: *mut kvc_tensor,
        extra: *const kvc_attention_extra,
    ) -> kvc_status;
    pub fn kvc_put_attention(
        cache: *mut kvc_cache,
        layer: i32,
        k: *const kvc_tensor,
        v: *const kvc_tensor,
        q: *const kvc_tensor,
        out: *mut kvc_tensor,
        extra: *const kvc_attention_extra,
    ) -> kvc_status;
    pub fn kvc_get(
        cache: *mut kvc_cache,
        layer: i32,
        k: *mut kvc_tensor,
        v: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_history(
        cache: *mut kvc_cache,
        layer: i32,
        first_cell: *mut i32,
        n_cells: *mut i32,
    ) -> kvc_status;
    pub fn kvc_mask(cache: *mut kvc_cache, layer: i32, into: *mut kvc_tensor) -> kvc_status;
    pub fn kvc_gather(
        cache: *mut kvc_cache,
        layer: i32,
        sequence: i32,
        k: *mut kvc_tensor,
        v: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_runs(
        cache: *const kvc_cache,
        layer: i32,
        sequence: i32,
        capacity: i32,
        runs: *mut kvc_run,
        n: *mut i32,
    ) -> kvc_status;
}
