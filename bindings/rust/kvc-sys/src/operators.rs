//! What `kvc/operators.h` declares, less its constants.
use crate::{kvc_attention_extra, kvc_cache, kvc_device, kvc_status, kvc_tensor};
use std::marker::{PhantomData, PhantomPinned};
use std::os::raw::{c_char, c_void};

/// A handle: a key of a table, never dereferenced.
#[repr(C)]
pub struct kvc_operator {
    _opaque: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_operator_info {
    pub struct_size: u32,
    pub devices: u32,
    pub modes: u32,
    pub features: u32,
    pub storage: u32,
    pub runtime_dtypes: u32,
    pub softmax_dtypes: u32,
    pub head_dim_min: i32,
    pub head_dim_max: i32,
    pub head_dim_multiple: i32,
    pub block_q_multiple: i32,
    pub block_k_multiple: i32,
    pub name: [c_char; 32],
    pub canonical: [c_char; 32],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_operator_needs {
    pub struct_size: u32,
    pub mode: u32,
    pub features: u32,
    pub dtype_k: u32,
    pub dtype_v: u32,
    pub n_q_heads: i32,
    pub n_kv_heads: i32,
    pub head_dim_k: i32,
    pub head_dim_v: i32,
    pub runtime_dtype: u32,
    pub softmax_dtype: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_operator_desc {
    pub struct_size: u32,
    pub flags: u32,
    pub runtime_dtype: u32,
    pub softmax_dtype: u32,
    pub softmax_scale: f32,
    pub dropout_prob: f32,
    pub block_q: i32,
    pub block_k: i32,
    pub block_b: i32,
    pub stretches: i32,
    pub max_rows: i32,
    pub max_q_len: i32,
    pub max_kv_len: i32,
    pub n_kv_heads: i32,
    pub max_q_heads: i32,
    pub head_dim_k: i32,
    pub head_dim_v: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_forward_desc {
    pub struct_size: u32,
    pub flags: u32,
    pub dropout_seed: u64,
    pub reach: i32,
    pub chunk: i32,
    pub query_offset: i32,
    pub layer: i32,
    pub softcap: f32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_operator_call {
    pub struct_size: u32,
    pub mode: u32,
    pub features: u32,
    pub layer: i32,
    pub n_tokens: i32,
    pub n_q_heads: i32,
    pub n_kv_heads: i32,
    pub batch: i32,
    pub scale: f32,
    pub softcap: f32,
    pub dropout_prob: f32,
    pub keep_factor: f32,
    pub block_q: i32,
    pub block_k: i32,
    pub block_b: i32,
    pub stretches: i32,
    pub dropout_seed: u64,
    pub slopes: *const f32,
    pub sinks: *const f32,
    pub q: *const kvc_tensor,
    pub k: *const kvc_tensor,
    pub k_scales: *const kvc_tensor,
    pub v: *const kvc_tensor,
    pub v_scales: *const kvc_tensor,
    pub bias: *const kvc_tensor,
    pub mask: *const kvc_tensor,
    pub position: *const i32,
    pub sequence: *const i32,
    pub out: *mut kvc_tensor,
    pub lse: *mut kvc_tensor,
    pub weights: *mut kvc_tensor,
    pub stream: *mut c_void,
}

/// They must not unwind.
pub type kvc_operator_forward_function =
    Option<unsafe extern "C" fn(user: *mut c_void, call: *const kvc_operator_call) -> kvc_status>;

pub type kvc_operator_supports_function =
    Option<unsafe extern "C" fn(user: *mut c_void, needs: *const kvc_operator_needs) -> kvc_status>;

pub type kvc_operator_release_function = Option<unsafe extern "C" fn(user: *mut c_void)>;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_operator_functions {
    pub struct_size: u32,
    pub reserved: u32,
    pub supports: kvc_operator_supports_function,
    pub forward_native: kvc_operator_forward_function,
    pub forward_cpu: kvc_operator_forward_function,
    pub forward_cuda: kvc_operator_forward_function,
    pub release: kvc_operator_release_function,
}

extern "C" {
    pub fn kvc_merge_attention(
        o: *mut kvc_tensor,
        lse: *mut kvc_tensor,
        o2: *const kvc_tensor,
        lse2: *const kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_apply_sinks(
        o: *mut kvc_tensor,
        lse: *const kvc_tensor,
        sinks: *const f32,
    ) -> kvc_status;
    pub fn kvc_repeat_kv_heads(r#in: *const kvc_tensor, n: i32, out: *mut kvc_tensor)
        -> kvc_status;
    pub fn kvc_dropout_mask(
        seed: u64,
        probability: f32,
        layer: i32,
        sequence: i32,
        n_q: i32,
        q_position: *const i32,
        n_k: i32,
        k_position: *const i32,
        into: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_mode_of(q: *const kvc_tensor, bthd: i32, mode: *mut u32) -> kvc_status;
    pub fn kvc_operator_at(
        device: *const kvc_device,
        i: i32,
        out: *mut kvc_operator_info,
    ) -> kvc_status;
    pub fn kvc_operator_find(
        device: *const kvc_device,
        name: *const c_char,
        out: *mut kvc_operator_info,
    ) -> kvc_status;
    pub fn kvc_operator_supports(
        device: *const kvc_device,
        name: *const c_char,
        needs: *const kvc_operator_needs,
        chosen: *mut c_char,
    ) -> kvc_status;
    pub fn kvc_operator_resolve(
        base: *const kvc_operator_desc,
        desc: *mut kvc_operator_desc,
    ) -> kvc_status;
    pub fn kvc_operator_create(
        device: *mut kvc_device,
        name: *const c_char,
        desc: *const kvc_operator_desc,
        out: *mut *mut kvc_operator,
    ) -> kvc_status;
    pub fn kvc_operator_destroy(op: *mut kvc_operator) -> kvc_status;
    pub fn kvc_operator_query(
        op: *const kvc_operator,
        info: *mut kvc_operator_info,
        desc: *mut kvc_operator_desc,
    ) -> kvc_status;
    pub fn kvc_bind_operator(
        cache: *mut kvc_cache,
        layer_begin: i32,
        layer_end: i32,
        modes: u32,
        op: *mut kvc_operator,
    ) -> kvc_status;
    pub fn kvc_operator_forward(
        op: *mut kvc_operator,
        desc: *const kvc_forward_desc,
        q: *const kvc_tensor,
        k: *const kvc_tensor,
        v: *const kvc_tensor,
        alibi_slopes: *const f32,
        sinks: *const f32,
        extra: *const kvc_attention_extra,
        out: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_call_mask(call: *const kvc_operator_call, into: *mut kvc_tensor) -> kvc_status;
    pub fn kvc_call_positions(
        call: *const kvc_operator_call,
        sequence: i32,
        capacity: i32,
        position: *mut i32,
    ) -> kvc_status;
    pub fn kvc_operator_register(
        device: *mut kvc_device,
        names: *const c_char,
        flags: u32,
        info: *const kvc_operator_info,
        functions: *const kvc_operator_functions,
        user: *mut c_void,
    ) -> kvc_status;
    pub fn kvc_operator_unregister(device: *mut kvc_device, name: *const c_char) -> kvc_status;
}
