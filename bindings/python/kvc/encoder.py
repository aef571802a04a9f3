"""Inputs of an encoder: what cross attention sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from . import kvc_capi as _capi
from ._arrays import Array, with_dtype
from ._handles import CacheHandle
from .info import EncoderInput

if TYPE_CHECKING:
    from ._arrays import Dtype


class Encoder(CacheHandle):
    """The part of kvc.Cache that holds what an encoder read, a newest input per sequence."""

    def encoder_put(
        self, layer: int, sequence: int, k: Array, v: Array, *, dtype: Dtype = None
    ) -> None:
        """Stores one layer's keys and values of the input that a sequence carries in the open pass.

        k      [length, n_kv_heads, head_dim_k], length 1 … capacity. The first put of an input sets
               its length, its other layers have the same
        v      [length, n_kv_heads, head_dim_v]
        dtype  element type of uint16 arrays ("bf16" or "f16")

        put() does the same for the only input of a pass.

        Raises BadState (no pass), InvalidArgument (the sequence carries no input in this pass, or
        shares another's), ShapeError, DtypeError, NotSupported (not an encoder cache).
        """
        if v is None:
            self._check_without_v(layer)
        if dtype is not None:
            k, v = with_dtype(k, dtype), with_dtype(v, dtype)
        _capi.kvc_encoder_put(self._handle, layer, sequence, k, v)

    def encoder_share(self, sequence: int, source: int) -> None:
        """Makes the input that a sequence carries in the open pass that of another sequence: the one
        that `source` carries in the pass, else the one that it holds.

        Nothing is encoded or put for it, and it takes no memory: one image in many chats, one
        recording with many prompts. (Copies of a sequence share its input by themselves.)

        Raises BadState (no pass, a layer of the input was put, or it is shared already),
        InvalidArgument (the sequence carries no input in this pass), NotFound (source has none).
        """
        _capi.kvc_encoder_share(self._handle, sequence, source)

    def encoder_query(self, sequence: int) -> Optional[EncoderInput]:
        """The input that a sequence holds, as if the open pass were committed; None: it has none."""
        position, length = _capi.kvc_encoder_query(self._handle, sequence)
        return None if position == _capi.KVC_NONE else EncoderInput(position, length)
