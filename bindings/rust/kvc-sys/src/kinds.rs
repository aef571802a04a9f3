//! What `kvc/encoder.h`, `kvc/recurrent.h` and `kvc/wrapper.h` declare, less their constants.
use crate::{kvc_cache, kvc_status, kvc_tensor};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_encoder_desc {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u32,
    pub inputs: i32,
    pub mask_dtype: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_recurrent_desc {
    pub struct_size: u32,
    pub kind: u32,
    pub flags: u32,
    pub dtype_state: u32,
    pub state_size: i64,
    pub conv_channels: i32,
    pub conv_dim: i32,
    pub dtype_conv: u32,
    pub checkpoints: i32,
    pub checkpoint_interval: i32,
    pub checkpoint_min_pos: i32,
    pub draft_states: i32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_state_sequence {
    pub sequence: i32,
    pub n_tokens: i32,
    pub first_token: i32,
    pub first_row: i32,
    pub n_rows: i32,
    pub read_slot: i32,
}

extern "C" {
    pub fn kvc_encoder_put(
        cache: *mut kvc_cache,
        layer: i32,
        sequence: i32,
        k: *const kvc_tensor,
        v: *const kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_encoder_share(cache: *mut kvc_cache, sequence: i32, source: i32) -> kvc_status;
    pub fn kvc_encoder_query(
        cache: *const kvc_cache,
        sequence: i32,
        position: *mut i32,
        length: *mut i32,
    ) -> kvc_status;
    pub fn kvc_state_layout(
        cache: *const kvc_cache,
        capacity: i32,
        sequences: *mut kvc_state_sequence,
        n: *mut i32,
        order: *mut i32,
    ) -> kvc_status;
    pub fn kvc_state_get(
        cache: *mut kvc_cache,
        layer: i32,
        part: i32,
        into: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_state_put(
        cache: *mut kvc_cache,
        layer: i32,
        part: i32,
        from: *const kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_state_conv(cache: *mut kvc_cache, layer: i32, x: *const kvc_tensor) -> kvc_status;
    pub fn kvc_state_view(
        cache: *mut kvc_cache,
        layer: i32,
        part: i32,
        n_dims: i32,
        dims: *const i64,
        slots: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_state_slots(
        cache: *const kvc_cache,
        capacity: i32,
        slot: *mut i32,
        n_rows: *mut i32,
    ) -> kvc_status;
    pub fn kvc_state_done(cache: *mut kvc_cache, layer: i32, part: i32) -> kvc_status;
    pub fn kvc_state_gather(
        cache: *mut kvc_cache,
        layer: i32,
        part: i32,
        sequence: i32,
        at: i32,
        into: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_checkpoint_take(cache: *mut kvc_cache, sequence: i32) -> kvc_status;
    pub fn kvc_checkpoint_list(
        cache: *const kvc_cache,
        sequence: i32,
        capacity: i32,
        at: *mut i32,
        n: *mut i32,
    ) -> kvc_status;
    pub fn kvc_cache_wrap(
        children: *const *mut kvc_cache,
        n_children: i32,
        child_of_layer: *const i32,
        layer_in_child: *const i32,
        n_layers: i32,
        out: *mut *mut kvc_cache,
    ) -> kvc_status;
    pub fn kvc_cache_child(
        wrapper: *const kvc_cache,
        layer: i32,
        child: *mut *mut kvc_cache,
        layer_in_child: *mut i32,
    ) -> kvc_status;
}
