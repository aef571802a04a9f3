use crate::cache::Cache;
use crate::error::{check, Result};
use crate::layers::Layers;
use crate::tensor::{DType, Tensor, TensorMut};
use kvc_sys as sys;
use std::mem::size_of;
use std::ops::Range;
use std::ptr;

/// For [`RecurrentDesc::checkpoints`], `checkpoint_interval` and `checkpoint_min_pos`: none.
pub const NONE: i32 = sys::KVC_NONE;

/// What only a recurrent cache needs. Such a cache holds states of fixed size in place of keys and
/// values: of state-space models, gated delta rules, short convolutions. kvc computes no recurrence.
/// A sequence can continue at its `next`, at its checkpoints, and at 0, where its state is zeros. Of
/// [`CacheDesc`](crate::CacheDesc), everything about keys and values must stay 0, `capacity` too.
/// See `kvc/recurrent.h`.
///
/// A recurrence that halves its state and adds each token's input:
///
/// ```
/// use kvc::{Cache, CacheDesc, Device, Kind, Part, RecurrentDesc, Tensor, TensorMut};
/// # fn main() -> kvc::Result<()> {
/// # let device = Device::open("cpu", 0)?;
/// let desc = CacheDesc { n_layers: 1, max_sequences: 2, max_batch: 8, ..Default::default() };
/// let kind = RecurrentDesc { state_size: 4, ..Default::default() };
/// let mut cache = Cache::new(&device, &desc, &Kind::Recurrent(kind))?;
///
/// let inputs = [1.0; 3]; // of each token: two of sequence 0, one of sequence 1
/// let mut pass = cache.begin(&[0, 1, 0], &[0, 0, 1])?;
/// let layout = pass.state_layout()?;
/// let n = layout.sequences.len();
/// let mut states = vec![0.0; n * 4];
/// pass.state_get(0, Part::Recurrent, TensorMut::f32(&mut states, &[n, 4])?)?;
/// for (sequence, state) in layout.sequences.iter().zip(states.chunks_mut(4)) {
///     for &token in &layout.order[sequence.tokens.clone()] {
///         state.iter_mut().for_each(|x| *x = *x / 2.0 + inputs[token]);
///     }
/// }
/// pass.state_put(0, Part::Recurrent, Tensor::f32(&states, &[layout.n_rows, 4])?)?;
/// pass.commit()?;
/// assert_eq!(states, [1.5, 1.5, 1.5, 1.5, 1.0, 1.0, 1.0, 1.0]);
///
/// cache.checkpoint_take(0)?; // copies nothing
/// assert_eq!(cache.checkpoint_list(0)?, [2]);
/// assert_eq!(cache.can_resume(0, 1)?, 0); // there is no state after the first token
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecurrentDesc {
    /// Elements of the recurrent state per layer and sequence; 0: there is no such part.
    pub state_size: i64,
    /// Storage type of the recurrent state: F32 (the default), F16 or BF16. Below F32 long sequences
    /// drift.
    pub dtype_state: DType,
    pub conv_channels: i32,
    /// The width of the convolution less 1. If it or `conv_channels` is 0 there is no such part.
    pub conv_dim: i32,
    /// Storage type of the convolution state.
    pub dtype_conv: DType,
    /// Checkpoints that a sequence keeps; 0: 24, [`NONE`]: none.
    pub checkpoints: i32,
    /// Positions from one automatic checkpoint to the next; 0: 1664, [`NONE`]: no automatic ones.
    pub checkpoint_interval: i32,
    /// The last position of a pass that leaves the first automatic one; 0: 16, [`NONE`]: any.
    pub checkpoint_min_pos: i32,
    /// A pass with at most `draft_states + 1` tokens of a sequence keeps a state per token, so that
    /// [`Pass::commit_prefix`](crate::Pass::commit_prefix) may keep some of them.
    pub draft_states: i32,
    /// Middle parts may be removed; states then still contain what was removed.
    pub approximate: bool,
    /// Checkpoints lie in host memory, where they are on the CPU in any case.
    pub host_checkpoints: bool,
}

impl RecurrentDesc {
    pub(crate) fn raw(&self) -> sys::kvc_recurrent_desc {
        let flag = |set, bit| if set { bit } else { 0 };
        sys::kvc_recurrent_desc {
            struct_size: size_of::<sys::kvc_recurrent_desc>() as u32,
            kind: sys::KVC_RECURRENT,
            flags: flag(self.approximate, sys::KVC_RECURRENT_APPROXIMATE)
                | flag(self.host_checkpoints, sys::KVC_RECURRENT_HOST_CHECKPOINTS),
            dtype_state: self.dtype_state.0,
            state_size: self.state_size,
            conv_channels: self.conv_channels,
            conv_dim: self.conv_dim,
            dtype_conv: self.dtype_conv.0,
            checkpoints: self.checkpoints,
            checkpoint_interval: self.checkpoint_interval,
            checkpoint_min_pos: self.checkpoint_min_pos,
            draft_states: self.draft_states,
            reserved: 0,
        }
    }
}

/// A part of a layer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `[conv_channels, conv_dim]`: the last inputs of a causal convolution, oldest first.
    Conv,
    /// `[state_size]`, of any shape.
    Recurrent,
}

impl Part {
    pub(crate) fn raw(self) -> i32 {
        match self {
            Part::Conv => sys::KVC_PART_CONV,
            Part::Recurrent => sys::KVC_PART_RECURRENT,
        }
    }
}

/// A sequence of a batch: where its tokens and its rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSequence {
    pub sequence: i32,
    /// Its tokens in [`StateLayout::order`].
    pub tokens: Range<usize>,
    /// Its rows in [`Layers::state_put`]: one for each token if there are at most `draft_states + 1`,
    /// else one, for the last token.
    pub rows: Range<usize>,
    /// Where a view has its state from before the pass; 0 is the slot of zeros, for new sequences.
    pub read_slot: i32,
}

/// The batch of a pass by sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// In order of first appearance: the rows of [`Layers::state_get`].
    pub sequences: Vec<StateSequence>,
    /// Indexes into the batch: sequence by sequence, each one's tokens in batch order, then the
    /// padding tokens.
    pub order: Vec<usize>,
    /// The rows of [`Layers::state_put`].
    pub n_rows: usize,
}

/// The layout of a pass as C tells it, without the order of the tokens.
pub(crate) fn sequences_of(
    handle: *const sys::kvc_cache,
    into: &mut Vec<sys::kvc_state_sequence>,
) -> Result<()> {
    let mut n = 0;
    check(unsafe { sys::kvc_state_layout(handle, 0, ptr::null_mut(), &mut n, ptr::null_mut()) })?;
    let none = sys::kvc_state_sequence {
        sequence: 0,
        n_tokens: 0,
        first_token: 0,
        first_row: 0,
        n_rows: 0,
        read_slot: 0,
    };
    into.clear();
    into.resize(n as usize, none);
    check(unsafe { sys::kvc_state_layout(handle, n, into.as_mut_ptr(), &mut n, ptr::null_mut()) })
}

impl Layers<'_> {
    /// Lists the batch by sequences. Their numbers of tokens may differ. Allocates the lists, so call
    /// it once per pass: it is the same for every layer.
    pub fn state_layout(&self) -> Result<StateLayout> {
        let (handle, mut found) = (self.cache.handle, Vec::new());
        sequences_of(handle, &mut found)?;
        let (mut order, mut n) = (vec![0; self.n_tokens as usize], 0);
        check(unsafe {
            sys::kvc_state_layout(handle, 0, ptr::null_mut(), &mut n, order.as_mut_ptr())
        })?;
        let range = |first: i32, n: i32| first as usize..(first + n) as usize;
        let sequence = |s: &sys::kvc_state_sequence| StateSequence {
            sequence: s.sequence,
            tokens: range(s.first_token, s.n_tokens),
            rows: range(s.first_row, s.n_rows),
            read_slot: s.read_slot,
        };
        let sequences: Vec<_> = found.iter().map(sequence).collect();
        Ok(StateLayout {
            n_rows: sequences.last().map_or(0, |last| last.rows.end),
            sequences,
            order: order.into_iter().map(|token| token as usize).collect(),
        })
    }

    /// Copies the states from before the pass into a tensor [sequences of the batch, …], whatever
    /// was put since. The other dimensions are free if their product is the size of the part.
    pub fn state_get(&mut self, layer: i32, part: Part, mut into: TensorMut<'_>) -> Result<()> {
        let handle = self.cache.handle;
        check(unsafe { sys::kvc_state_get(handle, layer, part.raw(), &mut into.raw) })
    }

    /// Stores the states that the tokens left, [rows of the batch, …]. A second put replaces the
    /// first. A part that was not put stays as it was.
    pub fn state_put(&mut self, layer: i32, part: Part, from: Tensor<'_>) -> Result<()> {
        check(unsafe { sys::kvc_state_put(self.cache.handle, layer, part.raw(), &from.raw) })
    }

    /// Puts the convolution part, made from the inputs of the convolution [n tokens, channels]: each
    /// row is the last columns of the state from before the pass followed by the inputs of the
    /// sequence's tokens up to the row's.
    pub fn state_conv(&mut self, layer: i32, x: Tensor<'_>) -> Result<()> {
        check(unsafe { sys::kvc_state_conv(self.cache.handle, layer, &x.raw) })
    }

    /// [`Cache::state_gather`] as if the pass were committed.
    pub fn state_gather(
        &mut self,
        layer: i32,
        part: Part,
        sequence: i32,
        at: i32,
        into: TensorMut<'_>,
    ) -> Result<()> {
        self.cache.state_gather(layer, part, sequence, at, into)
    }
}

impl Cache {
    /// Copies the state with which a sequence would continue at `at`: its `next`, one of its
    /// checkpoints, or 0 (zeros). NOT_FOUND: there is no state.
    pub fn state_gather(
        &mut self,
        layer: i32,
        part: Part,
        sequence: i32,
        at: i32,
        mut into: TensorMut<'_>,
    ) -> Result<()> {
        let (handle, part, into) = (self.handle, part.raw(), &mut into.raw);
        check(unsafe { sys::kvc_state_gather(handle, layer, part, sequence, at, into) })
    }

    /// Keeps the state of a sequence as a checkpoint at its `next`, without copying it. A sequence
    /// that has as many as it may loses its lowest. Only the end of a pass can become a checkpoint:
    /// end a pass where one is wanted, for instance before the last token of a prompt.
    pub fn checkpoint_take(&mut self, sequence: i32) -> Result<()> {
        check(unsafe { sys::kvc_checkpoint_take(self.handle, sequence) })
    }

    /// Lists where the checkpoints of a sequence continue, ascending. [`Cache::resume`] restores one.
    pub fn checkpoint_list(&self, sequence: i32) -> Result<Vec<i32>> {
        let (handle, mut n) = (self.handle, 0);
        check(unsafe { sys::kvc_checkpoint_list(handle, sequence, 0, ptr::null_mut(), &mut n) })?;
        let mut found = vec![0; n as usize];
        check(unsafe {
            sys::kvc_checkpoint_list(handle, sequence, n, found.as_mut_ptr(), &mut n)
        })?;
        Ok(found)
    }
}
