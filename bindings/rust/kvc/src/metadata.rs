use crate::batch::count;
use crate::descriptors::CacheDesc;
use crate::error::{check, Error, Result, Status};
use crate::transformer::TransformerDesc;
use kvc_sys as sys;
use std::mem::size_of;
use std::os::raw::c_char;
use std::ptr;

/// The kind of cache that [`Metadata`] describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MetadataKind {
    #[default]
    Transformer,
    Lightning,
}

impl MetadataKind {
    fn raw(self) -> u32 {
        match self {
            MetadataKind::Transformer => sys::KVC_TRANSFORMER,
            MetadataKind::Lightning => sys::KVC_LIGHTNING,
        }
    }
}

/// The sizes of a cache as models describe them, with the fields of EasyDeL's
/// TransformerCacheMetaData and LightningCacheMetaData. 0 in a field: not given. See `kvc/metadata.h`.
///
/// ```
/// # use kvc::*;
/// # fn main() -> Result<()> {
/// # let device = Device::open("cpu", 0)?;
/// let metadata = Metadata {
///     batch_size: 8, sequence_length: 4096, num_hidden_layers: 2, num_heads: 8, head_dim: 128,
///     ..Default::default()
/// };
/// let mut desc = CacheDesc {
///     max_batch: 8 * 64, dtype_k: DType::BF16, dtype_v: DType::BF16, ..Default::default()
/// };
/// let mut kind = TransformerDesc::default();
/// metadata.descriptors(&mut desc, Some(&mut kind))?;
/// let cache = Cache::new(&device, &desc, &Kind::Transformer(kind))?;
///
/// let text = metadata.to_json()?;
/// assert!(text.starts_with(r#"{"batch_size": 8, "sequence_length": 4096,"#));
/// assert_eq!(Metadata::from_json(MetadataKind::Transformer, &text)?, metadata);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub kind: MetadataKind,
    /// update_causal_mask = false: [`TransformerDesc::not_causal`]. Transformer caches.
    pub no_causal_mask: bool,
    /// create_attention_bias = false: [`TransformerDesc::mask_dtype`] becomes BOOL. Transformer caches.
    pub no_attention_bias: bool,
    /// `max_sequences`
    pub batch_size: i32,
    /// `capacity`; of lightning caches 0.
    pub sequence_length: i32,
    /// `n_layers`
    pub num_hidden_layers: i32,
    /// Any number, for [`padding`]; of lightning caches 0.
    pub pad_token_id: i32,
    /// KV heads: `key_heads` and `value_heads` where they are not given.
    pub num_heads: i32,
    /// `key_dim` and `value_dim` where they are not given.
    pub head_dim: i32,
    /// `n_kv_heads`
    pub key_heads: i32,
    /// [`TransformerDesc::value_heads`]
    pub value_heads: i32,
    /// `head_dim_k`
    pub key_dim: i32,
    /// `head_dim_v`
    pub value_dim: i32,
}

impl Metadata {
    /// Checks what was given, and fills in `key_heads` and `value_heads` from `num_heads`, `key_dim` and
    /// `value_dim` from `head_dim` where they were not. On failure nothing is filled in.
    pub fn resolve(&mut self) -> Result<()> {
        let mut raw = self.raw();
        check(unsafe { sys::kvc_metadata_resolve(&mut raw) })?;
        *self = self.with(&raw);
        Ok(())
    }

    /// Fills in the sizes of the descriptors of a cache; their other fields stay as they are. `kind` is
    /// for transformer caches, of lightning caches `None`. On failure nothing is filled in.
    /// [`Cache::new`](crate::Cache::new) checks the rest.
    pub fn descriptors(
        &self,
        desc: &mut CacheDesc,
        kind: Option<&mut TransformerDesc>,
    ) -> Result<()> {
        let mut raw_desc = desc.raw(self.kind.raw());
        let mut raw_kind = kind.as_ref().map(|kind| kind.raw());
        let kind_pointer = raw_kind
            .as_mut()
            .map_or(ptr::null_mut(), |raw| raw as *mut _);
        check(unsafe { sys::kvc_metadata_descriptors(&self.raw(), &mut raw_desc, kind_pointer) })?;
        desc.fill_in(&raw_desc);
        if let (Some(kind), Some(raw)) = (kind, raw_kind) {
            kind.fill_in(&raw);
        }
        Ok(())
    }

    /// Writes the metadata as one JSON object on one line. What was not given is null. Nothing is
    /// derived or checked.
    pub fn to_json(&self) -> Result<String> {
        let mut text = [0u8; 512]; // is enough, says kvc/metadata.h
        let mut length = 0;
        let buffer = text.as_mut_ptr() as *mut c_char;
        check(unsafe { sys::kvc_metadata_to_json(&self.raw(), buffer, text.len(), &mut length) })?;
        Ok(String::from_utf8_lossy(&text[..length.min(text.len() - 1)]).into_owned())
    }

    /// Reads metadata from a JSON object with the fields of [`Metadata::to_json`]. A field that is
    /// missing or null is not given, a field of another name is ignored. Nothing is derived or checked.
    /// CORRUPT: the text is no JSON object, or a field is of another type or does not fit.
    pub fn from_json(kind: MetadataKind, text: &str) -> Result<Metadata> {
        let metadata = Metadata {
            kind,
            ..Default::default()
        };
        let mut raw = metadata.raw();
        let (data, length) = (text.as_ptr() as *const c_char, text.len());
        check(unsafe { sys::kvc_metadata_from_json(data, length, &mut raw) })?;
        Ok(metadata.with(&raw))
    }

    fn raw(&self) -> sys::kvc_metadata {
        let flag = |set, bit| if set { bit } else { 0 };
        sys::kvc_metadata {
            struct_size: size_of::<sys::kvc_metadata>() as u32,
            kind: self.kind.raw(),
            flags: flag(self.no_causal_mask, sys::KVC_METADATA_NO_CAUSAL_MASK)
                | flag(self.no_attention_bias, sys::KVC_METADATA_NO_ATTENTION_BIAS),
            batch_size: self.batch_size,
            sequence_length: self.sequence_length,
            num_hidden_layers: self.num_hidden_layers,
            pad_token_id: self.pad_token_id,
            num_heads: self.num_heads,
            head_dim: self.head_dim,
            key_heads: self.key_heads,
            value_heads: self.value_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
        }
    }

    /// Returns what a call made of `self`, whose kind stays.
    fn with(&self, raw: &sys::kvc_metadata) -> Metadata {
        Metadata {
            kind: self.kind,
            no_causal_mask: raw.flags & sys::KVC_METADATA_NO_CAUSAL_MASK != 0,
            no_attention_bias: raw.flags & sys::KVC_METADATA_NO_ATTENTION_BIAS != 0,
            batch_size: raw.batch_size,
            sequence_length: raw.sequence_length,
            num_hidden_layers: raw.num_hidden_layers,
            pad_token_id: raw.pad_token_id,
            num_heads: raw.num_heads,
            head_dim: raw.head_dim,
            key_heads: raw.key_heads,
            value_heads: raw.value_heads,
            key_dim: raw.key_dim,
            value_dim: raw.value_dim,
        }
    }
}

/// Finds the padding at both ends of rows of `q_len` tokens each, and returns where the tokens of each
/// row begin and end: starts as [`Cache::rows_set`](crate::Cache::rows_set) takes them, and ends as
/// [`RowBatch::valid`](crate::RowBatch::valid). A row of padding alone has q_len and q_len.
///
/// ```
/// let (starts, ends) = kvc::padding(&[0, 0, 7, 8, /* */ 7, 0, 9, 0], 4, 0)?;
/// assert_eq!((starts, ends), (vec![2, 0], vec![4, 3])); // padding between tokens is none
/// # kvc::Result::Ok(())
/// ```
pub fn padding(token_ids: &[i32], q_len: i32, pad_token_id: i32) -> Result<(Vec<i32>, Vec<i32>)> {
    let per_row = usize::try_from(q_len).unwrap_or(0);
    let n = token_ids.len().checked_div(per_row).unwrap_or(0);
    if n * per_row != token_ids.len() {
        let length = token_ids.len();
        let message = format!("token_ids has {length} elements, no multiple of q_len {q_len}");
        return Err(Error::new(Status::INVALID_ARGUMENT, message));
    }
    let (mut starts, mut ends) = (vec![0; n], vec![0; n]);
    let (n_rows, ids) = (count("rows", n)?, token_ids.as_ptr());
    let (starts_to, ends_to) = (starts.as_mut_ptr(), ends.as_mut_ptr());
    check(unsafe { sys::kvc_padding(n_rows, q_len, ids, pad_token_id, starts_to, ends_to) })?;
    Ok((starts, ends))
}
