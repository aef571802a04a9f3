"""Operators that are written in Python: what the library calls, and what it gives them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Optional,
    SupportsIndex,
    TypeVar,
    overload,
)

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array
from ._sets import FEATURES, MODES, names_in, type_name
from .errors import BadState
from .views import View

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Description

    Into = TypeVar("Into", bound=Array)


@dataclass(frozen=True)
class OperatorNeeds:
    """What a layer or a question needs of an operator, for its supports()."""

    mode: str
    features: FrozenSet[str]
    dtype_k: str
    """storage of K"""
    dtype_v: str
    n_q_heads: int
    """0: any; likewise the next three"""
    n_kv_heads: int
    head_dim: int
    head_dim_v: int
    runtime_dtype: str
    softmax_dtype: str


class OperatorCall:
    """One call of an operator that is written in Python. It ends with the call: then its views and
    methods raise BadState, and an array over a view contains anything (its memory is not freed).

    Without rows [n_tokens] is the batch of tokens; with them (`batch` > 0: a pass of rows, or attention
    without a cache) it is [batch, q_len], and arrays over columns are [batch, n_q_heads, q_len, columns].
    The columns are those of history().
    """

    mode: str
    """"train", "prefill" or "autoregressive\""""
    features: FrozenSet[str]
    """what this call needs, as OperatorInfo lists it"""
    layer: int
    n_tokens: int
    n_q_heads: int
    n_kv_heads: int
    batch: int
    """rows; 0: tokens are a list"""
    scale: float
    softcap: float
    """0: none"""
    dropout_prob: float
    """0: no dropout in this call"""
    keep_factor: float
    """1 / (1 - dropout_prob)"""
    dropout_seed: int
    block_q: int
    """settings; 0: the operator's own"""
    block_k: int
    block_b: int
    stretches: int
    slopes: Optional[npt.NDArray[np.float32]]
    """[n_q_heads] of ALiBi, a copy; None: none"""
    sinks: Optional[npt.NDArray[np.float32]]
    """[n_q_heads], a copy; None: none, or the call leaves them out"""
    positions: npt.NDArray[np.int32]
    """[n_tokens] of the queries, a copy; of padding anything"""
    sequences: npt.NDArray[np.int32]
    """[n_tokens], a copy; kvc.PADDING: padding, whose rows the library writes"""
    q: View
    """[n_tokens, n_q_heads, head_dim]"""
    k: View
    """[columns, n_kv_heads, …] codes, as get_codes() lends them; of rows [batch, columns, …]"""
    k_scales: Optional[View]
    v: View
    v_scales: Optional[View]
    bias: Optional[View]
    """[n_q_heads, n_tokens, columns], with strides of 0 where it was broadcast; given with n_kv_heads
    heads, it keeps those"""
    mask: Optional[View]
    """bool, likewise"""
    out: View
    """[n_tokens, n_q_heads, head_dim_v], to be written"""
    lse: Optional[View]
    """[n_tokens, n_q_heads], to be written; None: not wanted"""
    weights: Optional[View]
    """[n_q_heads, n_tokens, columns], to be written; None: not wanted"""

    # Operators of callers are called on the CPU alone.
    _place = (1, 0)
    _device = None
    _stream = 0

    def __init__(self, raw: Any, owners: object, fields: Dict[str, Any]) -> None:
        self._raw = raw
        self._handle = owners  # of the memory of the views
        self._pass = 0
        for name, value in fields.items():
            setattr(self, name, self._public(name, value))

    @overload
    def visible(self, into: Into) -> Into: ...
    @overload
    def visible(self, into: None = ...) -> npt.NDArray[np.bool_]: ...
    def visible(self, into: Optional[Array] = None) -> Array:
        """What the call's queries see, its mask included and its bias not.

        into  [n_tokens, columns], of rows [batch, 1, q_len, columns], written: bool, or 0 and minus
              infinity in float32 or float16; None: a new bool array

        Returns into. Raises NotSupported (the call's mask differs from head to head: read `mask`),
        BadState (the call has ended), ShapeError, DtypeError.
        """
        if into is None:
            tokens = (
                (self.batch, 1, self.n_tokens // self.batch) if self.batch else (self.n_tokens,)
            )
            into = np.empty((*tokens, self._columns()), bool)
        _capi.kvc_call_mask(self._open(), into)
        return into

    def column_positions(self, sequence: SupportsIndex) -> npt.NDArray[np.int32]:
        """The positions of the columns for one sequence, [columns]: -1 where no query of it sees the cell.

        Raises InvalidArgument (no query is of this sequence), BadState (the call has ended).
        """
        found = np.empty(self._columns(), np.int32)
        _capi.kvc_call_positions(self._open(), sequence, found)
        return found

    def _public(self, name: str, value: Any) -> Any:
        """A field as Python shows it."""
        if name == "mode":
            (mode,) = names_in(value, MODES)
            return mode
        if name == "features":
            return names_in(value, FEATURES)
        if isinstance(value, bytes):
            dtype = np.float32 if name in ("slopes", "sinks") else np.int32
            return np.frombuffer(value, dtype)
        if isinstance(value, tuple):
            description: Description = value
            return View(self, description, "", writable=name in ("out", "lse", "weights"))
        return value

    def _columns(self) -> int:
        return self.k.shape[1 if self.batch else 0]

    def _open(self) -> Any:
        if self._raw is None:
            raise BadState("the call of this operator has ended")
        return self._raw

    def _end(self) -> None:
        self._raw = None
        self._pass = 1
        self._handle = None  # views and call refer to each other; arrays over views have it themselves

    def _ended(self, call: str) -> str:
        return "the call of this operator has ended:"


class Implementation:
    """An operator of a caller's, which the library holds until nobody needs it."""

    def __init__(self, target: Any) -> None:
        made: Any = target() if inspect.isclass(target) else target
        self._forward: Callable[[OperatorCall], object] = getattr(made, "forward", made)
        self._supports: Optional[Callable[[OperatorNeeds], object]] = getattr(
            made, "supports", None
        )
        if not callable(self._forward):
            raise TypeError(f"{type(made).__name__} has no forward(call)")

    @property
    def asks(self) -> int:
        """Whether the library is to ask supports()."""
        return int(self._supports is not None)

    def run(self, raw: Any, owners: object, fields: Dict[str, Any]) -> None:
        """One call; the library's side is src/operators.h."""
        call = OperatorCall(raw, owners, fields)
        try:
            returned = self._forward(call)
        finally:
            call._end()
        if returned is not None:
            raise TypeError(
                f"forward() of an operator returned {type(returned).__name__}, not None: it writes to "
                "call.out"
            )

    def supports(self, mode: int, features: int, *others: int) -> bool:
        """What is needed, as the library counts it."""
        dtype_k, dtype_v, n_q_heads, n_kv_heads, head_dim, head_dim_v, runtime, softmax = others
        (mode_name,) = names_in(mode, MODES)
        assert self._supports is not None
        return bool(
            self._supports(
                OperatorNeeds(
                    mode_name,
                    names_in(features, FEATURES),
                    type_name(dtype_k),
                    type_name(dtype_v),
                    n_q_heads,
                    n_kv_heads,
                    head_dim,
                    head_dim_v,
                    type_name(runtime),
                    type_name(softmax),
                )
            )
        )
