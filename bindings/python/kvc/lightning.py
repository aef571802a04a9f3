"""Linear attention with decay: how states decay, and states by copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, TypeVar, overload

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array
from ._handles import integer
from .constants import Constants, Layers, constants_of
from .errors import InvalidArgument

if TYPE_CHECKING:
    from typing import Literal

    import numpy.typing as npt

    Family = Literal["alibi", "lightning2", "minimax", "linear"]
    Into = TypeVar("Into", bound=Array)

_FAMILIES = {
    "alibi": _capi.KVC_SLOPES_ALIBI,
    "lightning2": _capi.KVC_SLOPES_LIGHTNING2,
    "minimax": _capi.KVC_SLOPES_MINIMAX,
    "linear": _capi.KVC_SLOPES_LINEAR,
}
_MOST_HEADS = 1 << 20


class Lightning(Constants):
    """The part of kvc.Cache that holds states of linear attention."""

    def bind_decay(self, slopes: Array, *, layers: Layers = None) -> None:
        """Binds how the states of layers decay: by exp(-slope) per position.

        With lambda = exp(-slope) of a state head, the output of the token at position p is

            o_p = scale * q_p * (sum over j <= p of lambda^(p - j) k_j^T v_j)

        over the tokens of its sequence at positions j: there is no softmax, and a state decays over a
        gap of positions. Query head h reads state head h / (n_q_heads / n_kv_heads). put_attention()
        makes states and outputs in one run over the tokens; attention() returns outputs for the layer
        that was put last. Of bind_attention() a scale alone is taken (0: 1).

        slopes  [n_kv_heads], finite, 0 or more; kvc.slopes() makes those of known families
        layers  None: all; a layer, a range, or (begin, end)

        Raises BadState (a pass is open, or a sequence is not empty), NotSupported (no lightning cache),
        InvalidArgument.
        """
        begin, end = self._layer_range(layers)
        given = None
        for n_heads in self._of_layers("n_kv_heads", begin, end):
            given = constants_of(slopes, n_heads, "slopes")
        _capi.kvc_bind_decay(self._handle, begin, end, given)

    @overload
    def lightning_read(
        self, layer: int, begin: int = ..., end: Optional[int] = ..., *, into: Into
    ) -> Into: ...
    @overload
    def lightning_read(
        self, layer: int, begin: int = ..., end: Optional[int] = ..., *, into: None = ...
    ) -> npt.NDArray[np.float32]: ...
    def lightning_read(
        self,
        layer: int,
        begin: int = 0,
        end: Optional[int] = None,
        *,
        into: Optional[Array] = None,
    ) -> Array:
        """Copies the states of sequences [begin, end), as of their next and as if the open pass were
        committed.

        end   None: to the last sequence
        into  float32 [end - begin, n_kv_heads, head_dim_k, head_dim_v], written; None: a new NumPy array

        Returns into. Raises NotSupported (no lightning layer), ShapeError, DtypeError, InvalidArgument.
        """
        n = (self._shape.max_sequences if end is None else integer("end", end)) - begin
        if into is None:
            into = np.empty(_capi.kvc_lightning_shape(self._handle, layer, begin, n)[1], np.float32)
        _capi.kvc_lightning_read(self._handle, layer, begin, n, into)
        return into

    def lightning_write(self, layer: int, states: Array, *, begin: int = 0) -> None:
        """Replaces the states of sequences [begin, begin + n) in one layer, as lightning_read() copies
        them. Their checkpoints are dropped.

        states  float32 [n, n_kv_heads, head_dim_k, head_dim_v]

        Raises BadState (a pass is open; the layer has no slopes; a sequence is empty, so its state is
        zeros), NotSupported (no lightning layer), ShapeError, DtypeError, InvalidArgument.
        """
        _capi.kvc_lightning_write(self._handle, layer, begin, states)


def slopes(
    family: Family, n_heads: int, *, layer: int = 0, n_layers: int = 1
) -> npt.NDArray[np.float32]:
    """The slopes of a known family, for bind_decay(); those of "alibi" also for bind_attention().

    With h the head, H = n_heads, l = layer and L = n_layers:

    "alibi"       2^(-8 (h + 1) / H); if H is no power of two, those of the next lower power, then every
                  second one of the next higher. Ignores the layer
    "lightning2"  alibi * (1 - l / max(L - 1, 1) + 1e-5)
    "minimax"     2^(-8 (h + 1) / H) * (1 - l / (L - 1 + 1e-5) + 1e-5)
    "linear"      8 h / H * (1 - l / L)

    Returns float32 [n_heads], computed in double and rounded once. Raises InvalidArgument.
    """
    if not isinstance(family, str) or family not in _FAMILIES:
        raise InvalidArgument(f"family {family!r} is not one of {', '.join(_FAMILIES)}")
    count = integer("n_heads", n_heads)
    if not 1 <= count <= _MOST_HEADS:
        raise InvalidArgument(f"n_heads is {count}; it must be 1 to {_MOST_HEADS}")
    made: Any = np.empty(count, np.float32)
    _capi.kvc_slopes(_FAMILIES[family], count, layer, n_layers, made)
    return made  # type: ignore[no-any-return]
