"""Constants of the model: how attention scores, and how the caller rotates keys."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, List, Optional, Tuple, Union

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array
from ._handles import CacheHandle, checks_names, integer, number, set_integers
from .errors import InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

Layers = Union[None, int, range, Tuple[int, int]]

_PAIRS = {"neighbours": _capi.KVC_ROPE_NEIGHBOURS, "halves": _capi.KVC_ROPE_HALVES}


class Constants(CacheHandle):
    """The part of kvc.Cache that binds constants of the model."""

    @checks_names
    def bind_attention(
        self,
        n_q_heads: int,
        *,
        layers: Layers = None,
        scale: float = 0.0,
        softcap: float = 0.0,
        alibi_slopes: Optional[Array] = None,
        sinks: Optional[Array] = None,
    ) -> None:
        """Binds the constants of attention. A layer that was never bound has the default scale and
        no options.

        n_q_heads     a multiple of n_kv_heads, at most max_q_heads
        layers        None: all; a layer, a range, or (begin, end)
        scale         0: 1 / sqrt(head_dim_k)
        softcap       x -> softcap * tanh(x / softcap) after the scale; 0: none
        alibi_slopes  [n_q_heads]: adds -slope * |distance|
        sinks         [n_q_heads]: one extra logit per query head, without a value

        Raises BadState (a pass is open).
        """
        desc = _capi.kvc_attention_desc()
        set_integers(desc, n_q_heads=n_q_heads)
        desc.scale, desc.softcap = number("scale", scale), number("softcap", softcap)
        _capi.kvc_bind_attention(
            self._handle,
            *self._layer_range(layers),
            desc,
            constants_of(alibi_slopes, n_q_heads, "alibi_slopes"),
            constants_of(sinks, n_q_heads, "sinks"),
        )

    @checks_names
    def bind_rope(
        self,
        *,
        base: float = 10000.0,
        layers: Layers = None,
        first_dim: int = 0,
        n_dims: int = 0,
        scale: float = 1.0,
        pairs: str = "neighbours",
        frequency_factors: Optional[Array] = None,
    ) -> None:
        """Binds how the caller rotates keys and queries, so that positions can move afterwards.

        Pair i is rotated by position * scale * base^(-2i / n_dims) / factor_i. kvc rotates nothing
        on put.

        layers             None: all; a layer, a range, or (begin, end)
        first_dim, n_dims  dimensions [first_dim, first_dim + n_dims) are rotated. n_dims is even;
                           0: all from first_dim on
        pairs              "neighbours": (0, 1) (2, 3) …; "halves": (0, n_dims/2) …; both counted
                           from first_dim
        frequency_factors  [n_dims / 2]; None: all 1

        Raises BadState (a pass is open or the cache is not empty), NotSupported (the cache is
        position-free).
        """
        if pairs not in _PAIRS:
            raise InvalidArgument(f'pairs {pairs!r} is neither "neighbours" nor "halves"')
        desc = _capi.kvc_rope_desc()
        set_integers(desc, pairs=_PAIRS[pairs], n_dims=n_dims, first_dim=first_dim)
        desc.base, desc.scale = number("base", base), number("scale", scale)
        begin, end = self._layer_range(layers)
        factors = None  # the library is not told how many there are
        for head_dim in self._of_layers("head_dim_k", begin, end):
            rotated = n_dims if n_dims else (head_dim - first_dim) // 2 * 2
            factors = constants_of(frequency_factors, rotated // 2, "frequency_factors")
        _capi.kvc_bind_rope(self._handle, begin, end, desc, factors)

    def _of_layers(self, name: str, begin: int, end: int) -> List[int]:
        """What the owners of some layers have of a field of the shape; those of a wrapper may differ."""
        if not self._owners:
            return [getattr(self._shape, name)]
        owners = self._owners[max(begin, 0) : max(end, 0)]
        return sorted({getattr(child._shape, name) for child, _ in owners} - {0})

    def _layer_range(self, layers: Layers) -> Tuple[int, int]:
        if layers is None:
            return 0, self.n_layers
        if isinstance(layers, range):
            if layers.step != 1:
                raise InvalidArgument(f"layers {layers!r} has a step: call once for each layer")
            return layers.start, layers.stop
        if isinstance(layers, tuple):
            if len(layers) != 2:
                raise InvalidArgument(f"layers {layers!r} is no (begin, end)")
            return integer("layers[0]", layers[0]), integer("layers[1]", layers[1])
        try:
            layer = operator.index(layers)
        except TypeError:
            raise TypeError(
                "layers must be a layer, a range, a tuple (begin, end) or None for all, not "
                f"{type(layers).__name__}"
            ) from None
        return layer, layer + 1


def constants_of(
    values: Optional[Array], count: int, name: str
) -> Optional[npt.NDArray[np.float32]]:
    """Small constants of the model as dense float32; the library copies them."""
    if values is None:
        return None
    try:
        with np.errstate(over="ignore"):  # an infinity is refused by the library, with its index
            constants = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold {count} numbers: {error}") from None
    if constants.shape != (count,):
        raise InvalidArgument(f"{name} has shape {constants.shape}, not ({count},)")
    return constants
