//! Calls of `kvc/operators.h` that need no handle: results over parts of the keys, dropout, modes.
use crate::batch::count;
use crate::bit_sets::Modes;
use crate::descriptors::constants;
use crate::error::{check, Result};
use crate::tensor::{Tensor, TensorMut};
use crate::view::extents;
use kvc_sys as sys;

/// Merges two results over disjoint keys into the one over all of them, in place: `o` and `lse` with
/// `o2` and `lse2`. Outputs are [..., heads, dim] of F32, F16 or BF16, log-sum-exps [..., heads] of F32.
/// A log-sum-exp of minus infinity counts as nothing. Both are results without sinks
/// ([`AttentionExtra::no_sinks`](crate::AttentionExtra::no_sinks)), which [`apply_sinks`] adds at the
/// end.
///
/// ```
/// # use kvc::*;
/// # fn main() -> Result<()> {
/// // Two keys of equal score that were attended apart.
/// let (mut o, mut lse) = ([1.0, 2.0], [0.5]);
/// let (o2, lse2) = ([3.0, 6.0], [0.5]);
/// merge_attention(
///     TensorMut::f32(&mut o, &[1, 2])?,
///     TensorMut::f32(&mut lse, &[1])?,
///     Tensor::f32(&o2, &[1, 2])?,
///     Tensor::f32(&lse2, &[1])?,
/// )?;
/// assert_eq!(o, [2.0, 4.0]);
/// assert!((lse[0] - (0.5 + 2f32.ln())).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn merge_attention(
    mut o: TensorMut<'_>,
    mut lse: TensorMut<'_>,
    o2: Tensor<'_>,
    lse2: Tensor<'_>,
) -> Result<()> {
    let (o, lse) = (&mut o.raw, &mut lse.raw);
    check(unsafe { sys::kvc_merge_attention(o, lse, &o2.raw, &lse2.raw) })
}

/// Adds the sinks, one for each head, to a result without them: `o` [..., heads, dim] becomes `o / (1 +
/// e^(sink - lse))`. The log-sum-exp [..., heads] never holds the sink.
pub fn apply_sinks(mut o: TensorMut<'_>, lse: Tensor<'_>, sinks: &[f32]) -> Result<()> {
    if let [.., heads, _] = *extents(&o.raw) {
        constants("sinks", Some(sinks), heads, "head")?;
    }
    check(unsafe { sys::kvc_apply_sinks(&mut o.raw, &lse.raw, sinks.as_ptr()) })
}

/// Writes each head of `input` [..., heads, dim] `n` times: head `h * n + i` of `out` [..., heads * n,
/// dim] is head `h`. Attention never needs it, kernels of your own may.
pub fn repeat_kv_heads(input: Tensor<'_>, n: i32, mut out: TensorMut<'_>) -> Result<()> {
    check(unsafe { sys::kvc_repeat_kv_heads(&input.raw, n, &mut out.raw) })
}

/// Writes the mask that a call of attention with this seed
/// ([`AttentionExtra::dropout`](crate::AttentionExtra::dropout)) uses, `into` [heads, query positions,
/// key positions] of BOOL: true is kept. `probability` is that of the layer's operator. The mask depends
/// on nothing but the numbers that are given here.
pub fn dropout_mask(
    seed: u64,
    probability: f32,
    layer: i32,
    sequence: i32,
    q_position: &[i32],
    k_position: &[i32],
    mut into: TensorMut<'_>,
) -> Result<()> {
    let n_q = count("q_position", q_position.len())?;
    let n_k = count("k_position", k_position.len())?;
    let (q, k) = (q_position.as_ptr(), k_position.as_ptr());
    let into = &mut into.raw;
    check(unsafe {
        sys::kvc_dropout_mask(seed, probability, layer, sequence, n_q, q, n_k, k, into)
    })
}

/// Returns the mode of queries without a cache: [`Modes::AUTOREGRESSIVE`] if there is one token per row,
/// else [`Modes::TRAIN`]. `q` is [batch, length, heads, dim] if `bthd`, else [batch, heads, length, dim].
pub fn mode_of(q: Tensor<'_>, bthd: bool) -> Result<Modes> {
    let mut mode = 0;
    check(unsafe { sys::kvc_mode_of(&q.raw, bthd.into(), &mut mode) })?;
    Ok(Modes(mode))
}
