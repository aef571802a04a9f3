"""Operators of attention by name: with settings, bound to layers or without a cache."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Iterable, Optional, TypeVar, Union, overload

from . import kvc_capi as _capi
from ._arrays import Array, extents, kind_of, new_result, with_dtype
from ._descriptors import reach_of
from ._handles import OwnsHandle, checks_names, integer, number, seed_of, set_integers
from ._sets import MODES, Mode, bits_of
from .constants import Constants, Layers, constants_of
from .device import Device, device_of
from .errors import InvalidArgument, InvalidHandle
from .operator_settings import OperatorInfo, OperatorSettings, info_of, text_of

if TYPE_CHECKING:
    from typing import Literal

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import TypedDict, Unpack

    from ._arrays import DLPackArray, Dtype, HostArray

    class Options(TypedDict, total=False):
        """The options of forward()."""

        causal: bool
        reach: Optional[int]
        sliding_window: Optional[int]
        chunk: Optional[int]
        query_offset: Optional[int]
        softcap: float
        alibi_slopes: Optional[Array]
        sinks: Optional[Array]
        bias: Optional[Array]
        mask: Optional[Array]
        weights: Optional[Array]
        lse: Optional[Array]
        dropout_seed: Optional[int]
        layer: int
        no_sinks: bool
        dtype: Dtype

    Out = TypeVar("Out", bound=Array)
    Other = TypeVar("Other", bound=DLPackArray)


class Operator(OwnsHandle):
    """An operator of attention with settings: to be bound to layers (Cache.bind_operator), or for attention
    without a cache (forward).

    name    of an operator of the device: "flash", "vanilla", "decode", "ring", "lightning", an alias, or
            one of Operators.register(). See kvc.operators()
    base    settings that stand for those that are not given
    device  a Device; None: the default CPU device
    others  as in OperatorSettings. max_rows … head_dim_v are the bounds of forward(), whose room is taken
            here; max_rows * max_q_len and max_rows * max_kv_len are at most 2^30

    Layers that are bound to it keep what they need of it, and so does it of its device: close them in any
    order. Close it (or use `with`) to free its memory at once.

    Raises NotFound (no such name; the message lists them), NotSupported (a setting that the operator lacks,
    or a block larger than it has), InvalidArgument, DtypeError, SizeOverflow, OutOfMemory.
    """

    _instead_of_a_copy = (
        "it owns memory of the library. Use the same object everywhere, or make another"
    )
    _instead_of_pickling = "it owns memory of this process. Make an operator in each process"

    @checks_names
    def __init__(
        self,
        name: str,
        *,
        base: Optional[OperatorSettings] = None,
        runtime_dtype: Dtype = None,
        softmax_dtype: Dtype = None,
        softmax_scale: float = 0.0,
        dropout_prob: float = 0.0,
        block_q: int = 0,
        block_k: int = 0,
        block_b: int = 0,
        stretches: int = 0,
        scan: bool = True,
        max_rows: int = 0,
        max_q_len: int = 0,
        max_kv_len: int = 0,
        n_kv_heads: int = 0,
        max_q_heads: int = 0,
        head_dim: int = 0,
        head_dim_v: int = 0,
        device: Optional[Device] = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _SETTINGS}
        desc = OperatorSettings(**given)._native(base)
        self.device = device_of(device)
        self._handle: Any = None
        self._handle = _capi.kvc_operator_create(self.device._handle, text_of("name", name), desc)

    @property
    def info(self) -> OperatorInfo:
        """What it has."""
        info = _capi.kvc_operator_info()
        _capi.kvc_operator_query(self._open(), info, None)
        return info_of(info)

    @property
    def settings(self) -> OperatorSettings:
        """Its settings as they are used: blocks are rounded up to the multiples of its info."""
        desc = _capi.kvc_operator_desc()
        _capi.kvc_operator_query(self._open(), None, desc)
        return OperatorSettings._of(desc)

    @overload
    def forward(
        self,
        q: Array,
        k: Array,
        v: Array,
        out: Out,
        *,
        numpy: bool = ...,
        **options: Unpack[Options],
    ) -> Out: ...
    @overload
    def forward(
        self,
        q: Array,
        k: Array,
        v: Array,
        out: None = ...,
        *,
        numpy: Literal[True],
        **options: Unpack[Options],
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def forward(
        self,
        q: HostArray,
        k: Array,
        v: Array,
        out: None = ...,
        *,
        numpy: bool = ...,
        **options: Unpack[Options],
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def forward(
        self,
        q: Other,
        k: Array,
        v: Array,
        out: None = ...,
        *,
        numpy: bool = ...,
        **options: Unpack[Options],
    ) -> Other: ...
    def forward(
        self,
        q: Array,
        k: Array,
        v: Array,
        out: Optional[Array] = None,
        *,
        causal: bool = False,
        reach: Optional[int] = None,
        sliding_window: Optional[int] = None,
        chunk: Optional[int] = None,
        query_offset: Optional[int] = None,
        softcap: float = 0.0,
        alibi_slopes: Optional[Array] = None,
        sinks: Optional[Array] = None,
        bias: Optional[Array] = None,
        mask: Optional[Array] = None,
        weights: Optional[Array] = None,
        lse: Optional[Array] = None,
        dropout_seed: Optional[int] = None,
        layer: int = 0,
        no_sinks: bool = False,
        dtype: Dtype = None,
        numpy: bool = False,
    ) -> Array:
        """Attention without a cache, within the bounds that the operator was made with.

        q             [rows, q_len, n_q_heads, head_dim]
        k, v          [rows, kv_len, n_kv_heads, head_dim / head_dim_v]
        out           [rows, q_len, n_q_heads, head_dim_v], written; None: a new float32 array of the kind
                      of q
        causal        query position p sees keys at or below p; keys count from 0
        reach         keys at or above p - reach; None: no limit. sliding_window=W is reach=W-1
        chunk         keys of the chunk of so many that p lies in; None: no chunks
        query_offset  position of query 0; None: kv_len - q_len, the queries are the last
        softcap       x -> softcap * tanh(x / softcap); 0: none
        alibi_slopes  [n_q_heads]: adds -slope * |distance|
        sinks         [n_q_heads]: one extra logit per query head, without a value
        bias          [rows, n_q_heads, q_len, kv_len], added to the scores, broadcast as in attention()
        mask          bool, likewise: False hides. Bias and mask both count
        weights       float32 [rows, n_q_heads, q_len, kv_len], written if given
        lse           float32 [rows, q_len, n_q_heads], written if given
        dropout_seed  0 … 2^64 - 1: drops weights with dropout_prob, by dropout_mask() with the row as
                      sequence; None: no dropout
        layer         of dropout, 0 … 65535
        no_sinks      a partial result for merge_attention(): the sinks take no part
        dtype         element type of uint16 arrays ("bf16" or "f16")
        numpy         True: a new array is NumPy's, whatever the kind of q

        The scale is softmax_scale, or 1 / sqrt(head_dim). A query that sees no key gets 0 (minus infinity
        in lse). Calls exclude each other (Busy); they release the GIL.

        Returns out. Raises NotSupported (made without bounds; what the call needs and the operator
        lacks), ShapeError (beyond the bounds, too), DtypeError, InvalidArgument.
        """
        desc = _capi.kvc_forward_desc()
        offset = 0 if query_offset is None else integer("query_offset", query_offset)
        if offset < 0:
            raise InvalidArgument(f"query_offset is {offset}; it must be 0 or more")
        set_integers(
            desc,
            flags=(_capi.KVC_FORWARD_CAUSAL if causal else 0)
            | (0 if dropout_seed is None else _capi.KVC_FORWARD_DROPOUT)
            | (_capi.KVC_FORWARD_NO_SINKS if no_sinks else 0),
            dropout_seed=seed_of("dropout_seed", dropout_seed),
            reach=reach_of(reach, sliding_window),
            chunk=0 if chunk is None else chunk,
            query_offset=0 if query_offset is None else offset or _capi.KVC_NONE,
            layer=layer,
        )
        desc.softcap = number("softcap", softcap)
        n_q_heads = (*extents(q)[2:], 0)[0]
        head_dim_v = (*extents(v)[3:], 0)[0]
        result: Any = new_result(q, head_dim_v) if out is None else out
        given = q, k, v, result, bias
        if dtype is not None:
            given = tuple(with_dtype(array, dtype) for array in given)
        _capi.kvc_operator_forward(
            self._open(),
            desc,
            *given[:4],
            constants_of(alibi_slopes, n_q_heads, "alibi_slopes"),
            constants_of(sinks, n_q_heads, "sinks"),
            given[4],
            mask,
            weights,
            lse,
        )
        returned: Array = result if numpy or out is not None else kind_of(q, result)
        return returned

    def close(self) -> None:
        """Frees its memory. Closing twice is allowed; layers that are bound to it stay so."""
        self._handle = None

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._handle is None

    def _open(self) -> Any:
        handle = self._handle
        if handle is None:
            raise InvalidHandle("the operator is closed: make another")
        return handle

    def __enter__(self) -> Operator:
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kvc.Operator {'closed' if self.closed else self.info.name}>"


_SETTINGS = {field.name for field in fields(OperatorSettings)}


class Attending(Constants):
    """The part of kvc.Cache that lets layers attend with operators."""

    def bind_operator(
        self,
        operator: Optional[Operator],
        *,
        layers: Layers = None,
        modes: Union[None, Mode, Iterable[Mode]] = None,
    ) -> None:
        """Lets layers attend with an operator in passes of some modes.

        operator  None: with what the library chooses
        layers    None: all; a layer, a range, or (begin, end)
        modes     of "prefill", "autoregressive" (a pass whose sequences have one token each) and "train" (a
                  call with dropout_seed); None: all

        Raises BadState (a pass is open), NotSupported (names what the layers have bound and store and the
        operator lacks), InvalidArgument (a softmax_scale other than that of a layer), DeviceMismatch.
        """
        if operator is not None and not isinstance(operator, Operator):
            raise TypeError(
                f"operator must be a kvc.Operator or None, not {type(operator).__name__}"
            )
        bits = _capi.KVC_MODE_ALL if modes is None else bits_of("modes", modes, MODES)
        handle = None if operator is None else operator._open()
        _capi.kvc_bind_operator(self._handle, *self._layer_range(layers), bits, handle)
