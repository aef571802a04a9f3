//! What `kvc/storage.h` declares, less its constants.
use crate::{kvc_cache, kvc_status, kvc_tensor};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_storage_info {
    pub struct_size: u32,
    pub dtype: u32,
    pub code_dtype: u32,
    pub scale_dtype: u32,
    pub block: i32,
    pub codes_per_row: i32,
    pub scales_per_row: i32,
    pub bytes_per_row: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_codec_desc {
    pub struct_size: u32,
    pub dtype: u32,
    pub flags: u32,
    pub block: i32,
    pub scale: f32,
}

extern "C" {
    pub fn kvc_storage_query(
        dtype: u32,
        head_dim: i32,
        block: i32,
        out: *mut kvc_storage_info,
    ) -> kvc_status;
    pub fn kvc_encode(
        desc: *const kvc_codec_desc,
        values: *const kvc_tensor,
        codes: *mut kvc_tensor,
        scales: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_decode(
        desc: *const kvc_codec_desc,
        codes: *const kvc_tensor,
        scales: *const kvc_tensor,
        values: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_bind_scales(
        cache: *mut kvc_cache,
        layer_begin: i32,
        layer_end: i32,
        k_scales: *const f32,
        v_scales: *const f32,
    ) -> kvc_status;
    pub fn kvc_get_codes(
        cache: *mut kvc_cache,
        layer: i32,
        k: *mut kvc_tensor,
        k_scales: *mut kvc_tensor,
        v: *mut kvc_tensor,
        v_scales: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_get_copy(
        cache: *mut kvc_cache,
        layer: i32,
        k: *mut kvc_tensor,
        v: *mut kvc_tensor,
    ) -> kvc_status;
    pub fn kvc_put_codes(
        cache: *mut kvc_cache,
        layer: i32,
        k: *const kvc_tensor,
        k_scales: *const kvc_tensor,
        v: *const kvc_tensor,
        v_scales: *const kvc_tensor,
    ) -> kvc_status;
}
