"""What a cache stores: codes and scales, and numbers decoded from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Optional, Tuple, TypeVar, Union, overload

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, Description, element_of, numpy_dtype, with_dtype
from ._handles import CacheHandle
from .constants import Constants, Layers, constants_of
from .views import View

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Dtype

    Into = TypeVar("Into", bound=Array)
    IntoK = TypeVar("IntoK", bound=Array)
    Number = Union[np.float32, np.float16, np.uint16]  # bfloat16 is ml_dtypes' or uint16


class Codes(NamedTuple):
    """Views of the codes and scales of a layer, in the order in which put_codes() takes them. In a pass of
    rows, and from rows_view(), [batch, columns, …] stands for [history, …]."""

    k: View
    """[history, n_kv_heads, codes_per_row]"""
    k_scales: Optional[View]
    """[history, n_kv_heads, scales_per_row]; None where the storage type stores none"""
    v: View
    """likewise; if V is a part of K, a view into k"""
    v_scales: Optional[View]
    """likewise"""


def codes_of(
    lender: CacheHandle, descriptions: Tuple[Optional[Description], ...], call: str
) -> Codes:
    """What the library lends, as views."""
    views = [None if each is None else View(lender, each, call) for each in descriptions]
    return Codes(*views)  # type: ignore[arg-type]


class Storage(Constants):
    """The part of kvc.Cache that reads and puts what is stored."""

    def bind_scales(
        self,
        k_scales: Optional[Array] = None,
        v_scales: Optional[Array] = None,
        *,
        layers: Layers = None,
    ) -> None:
        """Binds the scales of keys and values of f8: a number is stored as number / scale. A head
        without has 1.

        k_scales, v_scales  [n_kv_heads], each from 2^-100 to 2^100; None: stay as they are
        layers              None: all; a layer, a range, or (begin, end)

        Raises BadState (a pass is open or the cache is not empty), NotSupported (a side that is not
        f8), InvalidArgument.
        """
        begin, end = self._layer_range(layers)
        heads = self._of_layers("n_kv_heads", begin, end)
        given = []
        for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
            each = None
            for n in heads:
                each = constants_of(scales, n, name)
            given.append(each)
        _capi.kvc_bind_scales(self._handle, begin, end, *given)

    def get_codes(self, layer: int) -> Codes:
        """Read-only views of a layer's codes and scales over the cells that the pass may see.

        Returns (k, k_scales, v, v_scales), [history, n_kv_heads, …]: as many elements as
        kvc.storage_info() tells. For f32, f16 and bf16 the codes are the numbers. kvc.decode() decodes
        them. Keys are as they were put: runs() tells what rotation each owes. See kvc.View for how
        NumPy, PyTorch and JAX read them without a copy, and for how long.

        Raises BadState (no pass, or no put of this layer), NotSupported (no keys and values).
        """
        return codes_of(
            self._lender_of(layer), _capi.kvc_get_codes(self._handle, layer), "get_codes"
        )

    @overload
    def get_copy(
        self, layer: int, k: IntoK, v: Into, *, dtype: Dtype = ...
    ) -> Tuple[IntoK, Into]: ...
    @overload
    def get_copy(
        self, layer: int, k: None = ..., v: None = ..., *, dtype: Dtype = ...
    ) -> Tuple[npt.NDArray[Number], npt.NDArray[Number]]: ...
    @overload
    def get_copy(
        self,
        layer: int,
        k: Union[None, Literal[False], Array] = ...,
        v: Union[None, Literal[False], Array] = ...,
        *,
        dtype: Dtype = ...,
    ) -> Tuple[Optional[Array], Optional[Array]]: ...
    def get_copy(
        self,
        layer: int,
        k: Union[None, Literal[False], Array] = None,
        v: Union[None, Literal[False], Array] = None,
        *,
        dtype: Dtype = None,
    ) -> Tuple[Optional[Array], Optional[Array]]:
        """Copies a layer's K and V over the cells that the pass may see, as numbers, for every storage
        type: decoded, rotated back, keys turned for their present positions. With mask() they are
        what a textbook attention needs. Cells that no token of the pass sees are zeros.

        k      [history, n_kv_heads, head_dim_k], written; None: a new NumPy array; False: not wanted
        v      [history, n_kv_heads, head_dim_v]; likewise
        dtype  element type of new arrays (None: float32) and of uint16 arrays

        Returns (k, v), with None for what was not wanted.
        Raises BadState (no pass, or no put of this layer), ShapeError, DtypeError, CacheFull (no room
        to copy cells whose keys two sequences need turned differently).
        """
        self._check_given("k", k)
        self._check_given("v", v)
        if k is None or v is None:
            code = numpy_dtype(element_of(_capi.KVC_F32, dtype))
            shapes = _capi.kvc_copy_shape(self._handle, layer)
            k, v = (
                np.empty(shape, code) if each is None else each
                for each, (_, shape, _, _) in zip((k, v), shapes)
            )
        k, v = (None if part is False else part for part in (k, v))
        _capi.kvc_get_copy(self._handle, layer, with_dtype(k, dtype), with_dtype(v, dtype))
        return k, v

    def put_codes(
        self,
        layer: int,
        k: Array,
        k_scales: Optional[Array] = None,
        v: Optional[Array] = None,
        v_scales: Optional[Array] = None,
    ) -> None:
        """put() of what a cache of the same storage stored: codes and scales are kept byte for byte.
        For restoring a cache, and for moving tokens between caches. Nothing checks that the codes
        make sense.

        k, v                [n_tokens, n_kv_heads, codes_per_row]; those of f8 and bf16 may be uint8
                            and uint16
        k_scales, v_scales  [n_tokens, n_kv_heads, scales_per_row]; None where none is stored

        Any kvc.View or array of a part of what get_codes() lends does. If V is a part of K, v and
        v_scales are None.

        Raises what put() raises.
        """
        if v is None:
            self._check_without_v(layer)
        shape = self._owner_of(layer)._shape
        _capi.kvc_put_codes(
            self._handle,
            layer,
            (k, shape.dtype_k),
            k_scales,
            None if v is None else (v, shape.dtype_v),
            v_scales,
        )
