//! The KV cache that any inference runtime can link, for Rust.
//!
//! A [`Cache`] holds the keys and values of the tokens that a transformer has processed, for
//! several sequences at once, and computes attention straight from its memory:
//!
//! ```
//! use kvc::{Cache, CacheDesc, CausalDesc, Device, Kind, Tensor, TensorMut};
//! # fn main() -> kvc::Result<()> {
//! let device = Device::open("cpu", 0)?;
//! let desc = CacheDesc {
//!     n_layers: 1, n_kv_heads: 3, head_dim_k: 64, capacity: 2048, max_batch: 512,
//!     ..Default::default()
//! };
//! let mut cache = Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default()))?;
//! // Your projections, rotated as you like.
//! let (k, v) = (vec![0.5; 2 * 3 * 64], vec![1.0; 2 * 3 * 64]);
//! let (q, mut out) = (vec![0.25; 2 * 9 * 64], vec![0.0; 2 * 9 * 64]);
//! let mut pass = cache.begin(&[0, 1], &[0, 0])?; // positions of two tokens of sequence 0
//! pass.put(0, Tensor::f32(&k, &[2, 3, 64])?, Tensor::f32(&v, &[2, 3, 64])?)?;
//! pass.attention(0, Tensor::f32(&q, &[2, 9, 64])?, TensorMut::f32(&mut out, &[2, 9, 64])?)?;
//! pass.commit()?; // without it, dropping the pass aborts it
//! assert_eq!(out[0], 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! [`Kind`] lists what else a cache may be: inputs of encoders, states of recurrent layers and of linear
//! attention, batches of rows ([`Cache::begin_rows`]); [`Cache::from_layers`] makes one of several. An
//! [`Operator`] chooses how layers attend, and [`AttentionOperator`] is for algorithms of your own.
//!
//! The C headers are the manual: what each call does, what it costs and which errors it returns.
//! This is what differs in Rust: a [`Pass`] borrows its cache, so a call at the wrong time or an
//! overlap of calls does not compile. No call returns BUSY, and BAD_STATE remains for layers that
//! were not put, constants that are bound too late, and caches that are wrapped while they hold
//! something. A slice must be at least as long as its shape says. Nothing is `unsafe`.
//!
//! A position above the one where its sequence continues is legal: it leaves a gap. Set
//! [`CacheDesc::strict`] unless you want gaps; a wrong position is then an error.
//!
//! Messages name functions, flags and fields as the C headers do. The function `kvc_copy_prefix` is
//! the method [`Cache::copy_prefix`], fields have the same names, and a flag is a field of type
//! `bool`: `KVC_CACHE_STRICT` is [`CacheDesc::strict`], `KVC_CAUSAL_POSITION_FREE` is
//! [`CausalDesc::position_free`]. These have other names: `kvc_cache_create` is [`Cache::new`],
//! `kvc_cache_destroy` dropping it, `kvc_sequence_query` [`Cache::sequence`], `kvc_encoder_query`
//! [`Cache::encoder_input`], `kvc_cache_child` [`Cache::owner`], `kvc_state_digest`
//! [`Cache::digest`], `kvc_state_slots` [`StateView::row_slots`], `kvc_state_done`
//! [`StateView::done`], `kvc_encode` and `kvc_decode` [`Codec::encode`] and [`Codec::decode`],
//! `kvc_get_copy` [`Layers::get_copy`] and, into tensors, [`Layers::get_copy_into`]. Without a V, for
//! caches whose V is in K, `kvc_put` is [`Layers::put_k`], `kvc_put_attention`
//! [`Layers::put_k_attention`] and `kvc_put_codes` [`Layers::put_k_codes`]. `KVC_NONE` is [`PADDING`]
//! as a sequence, [`UNLIMITED`] as a `memory` and [`NONE`] for checkpoints, `KVC_TENSOR_TRANSPOSED`
//! [`Cache::gather_transposed`], `KVC_CODEC_ROTATE` [`Codec::rotate`]. Of operators, `kvc_operator_at`
//! is [`Device::operators`], `kvc_operator_create` [`Operator::new`], `kvc_operator_query`
//! [`Operator::info`] and [`Operator::desc`], `kvc_call_mask` [`OperatorCall::call_mask`]; the flag
//! `KVC_OPERATOR_REPLACE` is [`Device::operator_replace`], `KVC_EXTRA_DROPOUT` and `KVC_FORWARD_DROPOUT`
//! are a seed that is given. Numbers of rows that a tensor has are not given beside it.
//! `kvc_bind_shift` and strides of tensors have no counterpart.
mod attention_operator;
mod batch;
mod bit_sets;
mod cache;
mod codec;
mod descriptors;
mod device;
mod elements;
mod encoder;
mod error;
mod extra;
mod forward;
mod hybrid;
mod latent;
mod layers;
mod lightning;
mod metadata;
mod operator_call;
mod operators;
mod partials;
mod pass;
mod recurrent;
mod rows;
mod state_view;
mod stored;
mod tensor;
mod transformer;
mod view;
mod watching;
mod wrapper;

pub use attention_operator::AttentionOperator;
pub use batch::{
    token_type, BeginOptions, PADDING, TOKEN_ENCODER_INPUT, TOKEN_MASKED, TOKEN_SEES_LATER,
};
pub use bit_sets::{DTypes, Devices, Features, Modes};
pub use cache::{Cache, SEQ_END};
pub use codec::{storage_query, Codec, Codes, CodesMut, StorageInfo};
pub use descriptors::{AttentionDesc, CacheDesc, CausalDesc, Kind, RopeDesc, RopePairs, UNLIMITED};
pub use device::Device;
pub use elements::{BF16Element, F16Element};
pub use encoder::{EncoderDesc, EncoderInput};
pub use error::{Error, Result, Status};
pub use extra::AttentionExtra;
pub use forward::ForwardDesc;
pub use hybrid::Layer;
pub use layers::Layers;
pub use lightning::{slopes, LightningDesc, Slopes};
pub use metadata::{padding, Metadata, MetadataKind};
pub use operator_call::{Columns, OperatorCall, ViewMut};
pub use operators::{Operator, OperatorDesc, OperatorInfo, OperatorNeeds};
pub use partials::{apply_sinks, dropout_mask, merge_attention, mode_of, repeat_kv_heads};
pub use pass::Pass;
pub use recurrent::{Part, RecurrentDesc, StateLayout, StateSequence, NONE};
pub use rows::RowBatch;
pub use state_view::{StateRows, StateView, States};
pub use stored::{CodesView, Rows};
pub use tensor::{DType, Tensor, TensorMut};
pub use transformer::TransformerDesc;
pub use view::View;
pub use watching::{Run, SequenceInfo, State, Stats, Watcher};
pub use wrapper::WrapError;

use std::ffi::CStr;

/// Returns the library's version: major << 16 | minor << 8 | patch.
pub fn version_number() -> u32 {
    unsafe { kvc_sys::kvc_version_number() }
}

/// Returns one line about the library, for people.
pub fn build_info() -> String {
    unsafe { CStr::from_ptr(kvc_sys::kvc_build_info()) }
        .to_string_lossy()
        .into_owned()
}
