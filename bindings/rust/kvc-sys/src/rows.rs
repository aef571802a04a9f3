//! What `kvc/rows.h`, `kvc/transformer.h`, `kvc/lightning.h` and `kvc/metadata.h` declare, less their
//! constants.
use crate::{kvc_cache, kvc_cache_desc, kvc_status, kvc_tensor};
use std::os::raw::{c_char, c_void};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_transformer_desc {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u32,
    pub reach: i32,
    pub value_heads: i32,
    pub mask_dtype: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_lightning_desc {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u32,
    pub block: i32,
    pub checkpoints: i32,
    pub checkpoint_interval: i32,
    pub checkpoint_min_pos: i32,
    pub draft_states: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_metadata {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u32,
    pub batch_size: i32,
    pub sequence_length: i32,
    pub num_hidden_layers: i32,
    pub pad_token_id: i32,
    pub num_heads: i32,
    pub head_dim: i32,
    pub key_heads: i32,
    pub value_heads: i32,
    pub key_dim: i32,
    pub value_dim: i32,
}

extern "C" {
    pub fn kvc_begin_rows(
        cache: *mut kvc_cache,
        q_len: i32,
        flags: u32,
        valid: *const i32,
        attention_mask: *const kvc_tensor,
        token_types: *const i32,
        stream: *mut c_void,
    ) -> kvc_status;
    pub fn kvc_fits_rows(
        cache: *const kvc_cache,
        q_len: i32,
        flags: u32,
        valid: *const i32,
        attention_mask: *const kvc_tensor,
        token_types: *const i32,
    ) -> kvc_status;
    pub fn kvc_rows_query(
        cache: *const kvc_cache,
        row_begin: i32,
        n: i32,
        index: *mut i32,
        starts: *mut i32,
    ) -> kvc_status;
    pub fn kvc_rows_set(
        cache: *mut kvc_cache,
        row_begin: i32,
        n: i32,
        index: *const i32,
        starts: *const i32,
    ) -> kvc_status;
    pub fn kvc_insert(cache: *mut kvc_cache, other: *const kvc_cache, slot: i32) -> kvc_status;
    pub fn kvc_rows_view(
        cache: *const kvc_cache,
        layer: i32,
        k: *mut kvc_tensor,
        k_scales: *mut kvc_tensor,
        v: *mut kvc_tensor,
        v_scales: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_rows_fill(
        cache: *mut kvc_cache,
        layer: i32,
        row_begin: i32,
        n: i32,
        k: *const kvc_tensor,
        k_scales: *const kvc_tensor,
        v: *const kvc_tensor,
        v_scales: *const kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_bind_decay(
        cache: *mut kvc_cache,
        layer_begin: i32,
        layer_end: i32,
        slopes: *const f32,
    ) -> kvc_status;
    pub fn kvc_slopes(
        family: u32,
        n_heads: i32,
        layer: i32,
        n_layers: i32,
        out: *mut f32,
    ) -> kvc_status;
    pub fn kvc_lightning_read(
        cache: *const kvc_cache,
        layer: i32,
        sequence_begin: i32,
        n: i32,
        state: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_lightning_write(
        cache: *mut kvc_cache,
        layer: i32,
        sequence_begin: i32,
        n: i32,
        state: *const kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_metadata_resolve(metadata: *mut kvc_metadata) -> kvc_status;
    pub fn kvc_metadata_descriptors(
        metadata: *const kvc_metadata,
        desc: *mut kvc_cache_desc,
        kind_desc: *mut kvc_transformer_desc,
    ) -> kvc_status;
    pub fn kvc_metadata_to_json(
        metadata: *const kvc_metadata,
        buffer: *mut c_char,
        capacity: usize,
        length: *mut usize,
    ) -> kvc_status;
    pub fn kvc_metadata_from_json(
        text: *const c_char,
        length: usize,
        out: *mut kvc_metadata,
    ) -> kvc_status;
    pub fn kvc_padding(
        n_rows: i32,
        q_len: i32,
        token_ids: *const i32,
        pad_token_id: i32,
        starts: *mut i32,
        ends: *mut i32,
    ) -> kvc_status;
}
