use crate::tensor::{Tensor, TensorMut};
use kvc_sys as sys;
use std::mem::size_of;
use std::ptr;

/// What one attention call adds to the constants of the model, and what it returns besides the
/// output. `None`: not wanted. In passes of rows tensors have the shapes of
/// [`Cache::begin_rows`](crate::Cache::begin_rows). Columns are the cells that
/// [`Layers::history`](crate::Layers::history) returns. Bias and mask are broadcast: an extent may be
/// 1, and leading dimensions may be missing.
#[derive(Debug, Default)]
pub struct AttentionExtra<'a> {
    /// [query heads, n tokens, history], added to the scores; minus infinity hides.
    pub bias: Option<Tensor<'a>>,
    /// [query heads, n tokens, history], a [`Tensor::bool`]: false hides. It can hide more than
    /// the cache's own rules do, never less.
    pub mask: Option<Tensor<'a>>,
    /// [query heads, n tokens, history] f32, written: the weight of each value. For analysis, not
    /// for speed.
    pub weights: Option<TensorMut<'a>>,
    /// [n tokens, query heads] f32, written: the log of the sum of exponentials over visible keys.
    pub lse: Option<TensorMut<'a>>,
    /// The seed with which weights are dropped, with the probability of the operator that the layer
    /// attends with ([`OperatorDesc::dropout_prob`](crate::OperatorDesc::dropout_prob)).
    /// [`dropout_mask`](crate::dropout_mask) tells which. `weights` are what is left, `lse` is that of
    /// all keys.
    pub dropout: Option<u64>,
    /// A partial result, for [`merge_attention`](crate::merge_attention): the layer's sinks take no part
    /// in the softmax.
    pub no_sinks: bool,
}

impl AttentionExtra<'_> {
    /// The pointers are valid as long as the borrow of `self`.
    pub(crate) fn raw(&mut self) -> sys::kvc_attention_extra {
        let read = |tensor: &Option<Tensor<'_>>| -> *const sys::kvc_tensor {
            tensor.as_ref().map_or(ptr::null(), |tensor| &tensor.raw)
        };
        let written = |tensor: &mut Option<TensorMut<'_>>| -> *mut sys::kvc_tensor {
            tensor
                .as_mut()
                .map_or(ptr::null_mut(), |tensor| &mut tensor.raw)
        };
        let flag = |set, bit| if set { bit } else { 0 };
        sys::kvc_attention_extra {
            struct_size: size_of::<sys::kvc_attention_extra>() as u32,
            flags: flag(self.dropout.is_some(), sys::KVC_EXTRA_DROPOUT)
                | flag(self.no_sinks, sys::KVC_EXTRA_NO_SINKS),
            bias: read(&self.bias),
            mask: read(&self.mask),
            weights: written(&mut self.weights),
            lse: written(&mut self.lse),
            dropout_seed: self.dropout.unwrap_or(0),
            first_position: ptr::null(),
            constants: ptr::null(),
            alibi_slopes: ptr::null(),
            sinks: ptr::null(),
        }
    }
}
