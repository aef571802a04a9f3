"""Partial results of attention, dropout, and modes: calls that need no cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Optional, TypeVar, overload

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, extents, numpy_dtype
from ._batch import int32s
from ._handles import integer, number, seed_of
from .constants import constants_of
from .errors import ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Integers

    Into = TypeVar("Into", bound=Array)


def merge_attention(o: Array, lse: Array, o2: Array, lse2: Array) -> None:
    """Merges two results over disjoint keys into the one over all of them, in o and lse.

    With L = log(e^lse + e^lse2), o becomes o e^(lse - L) + o2 e^(lse2 - L), and lse becomes L. A lse of
    minus infinity (a row that saw nothing) counts as nothing. Both are results without sinks
    (no_sinks=True).

    o, o2      [..., heads, dim], of one shape; o is written
    lse, lse2  float32 [..., heads]; lse is written

    Raises ShapeError, DtypeError.
    """
    _capi.kvc_merge_attention(o, lse, o2, lse2)


def apply_sinks(o: Array, lse: Array, sinks: Array) -> None:
    """Adds the sinks to a result without them, once, when everything is merged: o becomes
    o / (1 + e^(sink - lse)), and 0 where lse is minus infinity.

    o      [..., heads, dim], written
    lse    float32 [..., heads]; it never holds the sink
    sinks  [heads], finite

    Raises InvalidArgument, ShapeError, DtypeError.
    """
    heads = (*extents(lse)[-1:], 0)[0]
    _capi.kvc_apply_sinks(o, lse, constants_of(sinks, heads, "sinks"))


@overload
def repeat_kv_heads(x: Array, n: int, out: Into) -> Into: ...
@overload
def repeat_kv_heads(x: Array, n: int, out: None = ...) -> npt.NDArray[Any]: ...
def repeat_kv_heads(x: Array, n: int, out: Optional[Array] = None) -> Array:
    """Writes each KV head n times: head h * n + i of the result is head h of x. attention() never needs it,
    kernels of your own may.

    x    [..., heads, dim], of any element type
    out  [..., heads * n, dim] of the same type, written; None: a new NumPy array

    Returns out. Raises InvalidArgument, ShapeError, DtypeError.
    """
    if out is None:
        _, shape, _, code = _capi.describe_elements(x)
        heads = shape[-2] * max(integer("n", n), 0) if len(shape) > 1 else 0
        made = np.empty((*shape[:-2], heads, *shape[-1:]), numpy_dtype(code))
        _capi.kvc_repeat_kv_heads(x, n, (made, code))
        return made
    _capi.kvc_repeat_kv_heads(x, n, out)
    return out


@overload
def dropout_mask(
    seed: int,
    probability: float,
    *,
    n_heads: int,
    q_positions: Integers,
    k_positions: Integers,
    layer: int = ...,
    sequence: int = ...,
    into: Into,
) -> Into: ...
@overload
def dropout_mask(
    seed: int,
    probability: float,
    *,
    n_heads: int,
    q_positions: Integers,
    k_positions: Integers,
    layer: int = ...,
    sequence: int = ...,
    into: None = ...,
) -> npt.NDArray[np.bool_]: ...
def dropout_mask(
    seed: int,
    probability: float,
    *,
    n_heads: int,
    q_positions: Integers,
    k_positions: Integers,
    layer: int = 0,
    sequence: int = 0,
    into: Optional[Array] = None,
) -> Array:
    """The mask that a call of attention with this dropout_seed uses: True is kept, and multiplied with
    1 / (1 - probability).

    A weight is kept if w >= floor(probability * 2^32), where w is word j % 4 of Philox4x32-10 with the key
    (seed % 2^32, seed / 2^32) and the counter (j / 4, p, layer * 65536 + head, sequence). So a mask
    depends on positions, and not on cells, blocks, threads or instruction sets.

    seed         0 … 2^64 - 1
    probability  0 or more, below 1
    n_heads      query heads
    q_positions  [n_q] positions p of queries
    k_positions  [n_k] positions j of keys
    layer        0 … 65535
    sequence     0 or more; of forward() the row
    into         bool [n_heads, n_q, n_k], written; None: a new NumPy array

    Returns into. Raises InvalidArgument, ShapeError, DtypeError, NotSupported (more than 65536 heads).
    """
    q = int32s("q_positions", q_positions, ("n_q",))
    k = int32s("k_positions", k_positions, ("n_k",))
    heads = integer("n_heads", n_heads)
    if into is None:
        into = np.empty((max(heads, 0), len(q), len(k)), bool)
    elif extents(into)[:1] != (heads,):
        raise ShapeError(f"into has shape {extents(into)}, not [{heads}, {len(q)}, {len(k)}]")
    _capi.kvc_dropout_mask(
        seed_of("seed", seed),
        number("probability", probability),
        layer,
        sequence,
        len(q),
        q,
        len(k),
        k,
        into,
    )
    return into


def mode_of(q: Array, *, bthd: bool = True) -> Literal["autoregressive", "train"]:
    """The mode of queries without a cache: "autoregressive" if there is one token per row, else "train".

    q     four dimensions; only its shape is read
    bthd  True: q is [batch, length, heads, dim]; False: [batch, heads, length, dim]

    Raises ShapeError.
    """
    mode = _capi.kvc_mode_of(q, int(bool(bthd)))
    return "autoregressive" if mode == _capi.KVC_MODE_AUTOREGRESSIVE else "train"
