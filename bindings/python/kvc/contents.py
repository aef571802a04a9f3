"""What a cache holds: for kernels of the caller's own, and to be copied out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Literal, Optional, Tuple, TypeVar, Union, overload

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, element_of, numpy_dtype, with_dtype
from .info import Run
from .sequences import Sequences
from .views import View

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import TypedDict, Unpack

    from ._arrays import Dtype

    Into = TypeVar("Into", bound=Array)
    IntoK = TypeVar("IntoK", bound=Array)
    MaskElement = Union[np.float32, np.float16, np.bool_]
    Stored = Union[np.float32, np.float16, np.uint16]  # bfloat16 is ml_dtypes' or uint16

    class Options(TypedDict, total=False):
        """The options of gather()."""

        transpose_v: bool
        dtype: Dtype


class Contents(Sequences):
    """The part of kvc.Cache that reads keys, values, masks and cells."""

    @overload
    def get(
        self, layer: int, k: Literal[True] = ..., v: Literal[True] = ...
    ) -> Tuple[View, View]: ...
    @overload
    def get(
        self, layer: int, k: Literal[True] = ..., *, v: Literal[False]
    ) -> Tuple[View, None]: ...
    @overload
    def get(
        self, layer: int, k: Literal[False], v: Literal[True] = ...
    ) -> Tuple[None, View]: ...
    @overload
    def get(self, layer: int, k: bool, v: bool) -> Tuple[Optional[View], Optional[View]]: ...
    def get(
        self, layer: int, k: bool = True, v: bool = True
    ) -> Tuple[Optional[View], Optional[View]]:
        """Read-only views of a layer's K and V over the cells that the pass may see.

        k, v  False: not wanted

        Returns (k [history, n_kv_heads, head_dim_k], v [history, n_kv_heads, head_dim_v]) in the
        storage type, with None for what was not wanted. What is wanted must be stored as f32, f16 or
        bf16. Cells that no token of the pass sees may hold anything: apply mask() before you multiply.
        See kvc.View for how NumPy, PyTorch and JAX read them without a copy, and for how long.

        Raises BadState (no pass, or no put of this layer), CacheFull, NotSupported (what is wanted is
        stored as codes: get_codes() lends them, get_copy() decodes them).
        """
        lender = self._lender_of(layer)
        views = _capi.kvc_get(self._handle, layer, int(k), int(v))
        of_k, of_v = (None if each is None else View(lender, each, "get") for each in views)
        return of_k, of_v

    def history(self, layer: int) -> range:
        """The cells that the columns of get(), mask() and of a bias, mask or weights stand for.

        Column i is cell history(layer)[i], as runs() numbers cells. get() may change the range,
        because it copies shared cells whose keys it rotates. In a causal cache all layers have the
        same history. A pass of padding alone has none. Raises BadState (no pass).
        """
        first, count = _capi.kvc_history(self._handle, layer)
        return range(first, first + count)

    @overload
    def mask(self, layer: int, into: Into) -> Into: ...
    @overload
    def mask(self, layer: int, into: None = ...) -> npt.NDArray[MaskElement]: ...
    def mask(self, layer: int, into: Optional[Array] = None) -> Array:
        """The mask that belongs to get(): 0 where a token sees a cell and minus infinity elsewhere,
        or, as bool, True and False.

        into  [n_tokens, history], float32, float16 or bool, written; None: a new NumPy array of
              mask_dtype

        Returns into. Raises BadState (no pass), ShapeError, DtypeError.
        """
        self._check_given("into", into)
        if into is None:
            _, shape, _, code = _capi.kvc_mask_shape(self._handle, layer)
            into = np.empty(shape, dtype=numpy_dtype(code))
        _capi.kvc_mask(self._handle, layer, into)
        return into

    @overload
    def gather(
        self, layer: int, sequence: int, k: IntoK, v: Into, **options: Unpack[Options]
    ) -> Tuple[IntoK, Into]: ...
    @overload
    def gather(
        self,
        layer: int,
        sequence: int,
        k: None = ...,
        v: None = ...,
        **options: Unpack[Options],
    ) -> Tuple[npt.NDArray[Stored], npt.NDArray[Stored]]: ...
    @overload
    def gather(
        self,
        layer: int,
        sequence: int,
        k: Union[None, Literal[False], Array] = ...,
        v: Union[None, Literal[False], Array] = ...,
        **options: Unpack[Options],
    ) -> Tuple[Optional[Array], Optional[Array]]: ...
    def gather(
        self,
        layer: int,
        sequence: int,
        k: Union[None, Literal[False], Array] = None,
        v: Union[None, Literal[False], Array] = None,
        *,
        transpose_v: bool = False,
        dtype: Dtype = None,
    ) -> Tuple[Optional[Array], Optional[Array]]:
        """Copies what a sequence holds in a layer, in order of position, with keys rotated for
        their present positions.

        k      [count, n_kv_heads, head_dim_k], written; None: a new NumPy array; False: not
               wanted
        v      [count, n_kv_heads, head_dim_v], or [n_kv_heads, head_dim_v, count] with transpose_v;
               likewise
        dtype  element type of new arrays (None: the storage type, or float32 where it holds codes)
               and of uint16 arrays

        count is query(sequence).count, in a wrapper that of the child that owns the layer. Returns (k, v), with None for what was not wanted.
        Raises ShapeError, DtypeError.
        """
        owner = self._owner_of(layer)._shape
        self._check_given("k", k)
        self._check_given("v", v)
        if k is None or v is None:
            count = sum(run.length for run in self.runs(layer, sequence))
            shape = (count, owner.n_kv_heads, owner.head_dim_v)
            code_k = element_of(owner.dtype_k, dtype)
            code_v = element_of(owner.dtype_v or owner.dtype_k, dtype)  # 0: V is a part of K
            if k is None:
                k = np.empty((*shape[:2], owner.head_dim_k), dtype=numpy_dtype(code_k))
            if v is None:
                v = np.empty((*shape[1:], count) if transpose_v else shape, numpy_dtype(code_v))
        k, v = (None if part is False else part for part in (k, v))
        _capi.kvc_gather(
            self._handle,
            layer,
            sequence,
            int(transpose_v),
            _stored(k, dtype, owner.dtype_k),
            _stored(v, dtype, owner.dtype_v),
        )
        return k, v

    def runs(self, layer: int, sequence: int) -> List[Run]:
        """Where a sequence's tokens are in a layer, in order of position, as the fewest runs of
        cells. In a causal cache all layers have the same runs."""
        count = _capi.kvc_runs(self._handle, layer, sequence, None)
        while True:
            table = np.empty((count, 4), dtype=np.int32)
            found = _capi.kvc_runs(self._handle, layer, sequence, table)
            if found <= count:
                return [Run(*row) for row in table[:found].tolist()]
            count = found


def _stored(array: Optional[Array], dtype: Dtype, code: int) -> Any:
    """An array that gather() writes. If dtype is None, bare 16-bit values are the storage type."""
    if array is None or dtype is not None:
        return with_dtype(array, dtype)
    return array, code
