"""Objects that stand for something in the library, and filling its descriptors in."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Dict,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    cast,
)

from . import kvc_capi as _capi
from .errors import Error, InvalidArgument

if TYPE_CHECKING:
    from .cache import Cache
    from .device import Device

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


class OwnsHandle:
    """Refuses to be copied and pickled: a copy would be a second owner of one handle."""

    __slots__ = ()
    _instead_of_a_copy: ClassVar[str]
    _instead_of_pickling: ClassVar[str]

    def __copy__(self) -> NoReturn:
        raise TypeError(f"a kvc.{type(self).__name__} cannot be copied: {self._instead_of_a_copy}")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a kvc.{type(self).__name__} cannot be pickled: {self._instead_of_pickling}"
        )


class Shape(NamedTuple):
    """What stays of the arguments of a cache. What its kind does not have is 0."""

    kind: str
    n_layers: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    max_sequences: int
    max_batch: int
    capacity: int
    dtype_k: int
    dtype_v: int
    dtype_conv: int
    dtype_state: int
    conv_shape: Tuple[int, ...]
    state_shape: Tuple[int, ...]
    block_k: int = 0
    block_v: int = 0
    flags: int = 0
    """KVC_CACHE_… of the library"""
    v_first: Optional[int] = None
    """None: V is stored by itself"""
    value_heads: int = 0
    """0: n_kv_heads"""
    is_causal: bool = True
    """whether tokens see no later ones of their pass, where it does not say otherwise"""


class CacheHandle(OwnsHandle):
    """What the parts of kvc.Cache share."""

    _instead_of_a_copy = (
        "it owns memory of the library. Use the same object everywhere; copy_prefix() continues a "
        "sequence as another one, gather() copies what a sequence holds"
    )
    _instead_of_pickling = (
        "it owns memory of this process. Create a cache in each process; gather() copies what a "
        "sequence holds into arrays, which can be sent"
    )
    _handle: Any
    """a capsule that destroys the cache with its last reference; None: closed"""
    _pass: int
    """changes whenever a pass may have ended, which invalidates its views"""
    _shape: Shape
    _place: Tuple[int, int] = (1, 0)
    """DLPack's type and number of its device"""
    _device: Optional[Device] = None
    """where the place is a GPU"""
    _stream: int = 0
    """of the last pass, where the place is a GPU"""
    _children: Tuple[Cache, ...] = ()
    """of a wrapper"""
    _owns_children: bool = False
    """whether they close with it"""
    _wrapper: Callable[[], Optional[CacheHandle]] = staticmethod(lambda: None)
    """of a child: a weak reference to the last wrapper that took it"""
    _owners: Sequence[Tuple[Cache, int]] = ()
    """of a wrapper: for each layer the child that owns it, and its number there"""

    _watcher: ClassVar[Any] = None
    """kvc.inspect sets it: called when a pass has ended and before a cache is closed."""

    @property
    def kind(self) -> str:
        """The kind of the cache, as kvc.Cache() takes it."""
        return self._shape.kind

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self._shape.n_layers

    @property
    def n_kv_heads(self) -> int:
        """KV heads of a layer."""
        return self._shape.n_kv_heads

    @property
    def head_dim_k(self) -> int:
        """Elements of a key."""
        return self._shape.head_dim_k

    @property
    def head_dim_v(self) -> int:
        """Elements of a value."""
        return self._shape.head_dim_v

    @property
    def max_sequences(self) -> int:
        """Sequences are 0 … max_sequences - 1."""
        return self._shape.max_sequences

    def _is_wrapped(self) -> bool:
        wrapper = self._wrapper()
        return wrapper is not None and wrapper._handle is not None

    def _owner_of(self, layer: Any) -> CacheHandle:
        """The cache that a layer belongs to; the library refuses a layer that there is not."""
        try:
            return self._owners[layer][0] if self._owners else self
        except (IndexError, TypeError):
            return self

    def _lender_of(self, layer: Any) -> CacheHandle:
        """The cache whose memory a view of a layer shows: a wrapper lends that of its child, so that
        closing the wrapper frees the child for other use."""
        owner = self._owner_of(layer)
        return self if owner._handle is None else owner

    def _ended(self, call: str) -> str:
        again = "again" if call == "rows_view" else "in the next pass"
        return f"the pass of this view has ended: call {call}() {again}, or"

    def _note_stream(self, stream: int) -> None:
        """The stream that a pass has begun on."""
        if self._device is None:
            return
        for cache in (self, *self._children):
            cache._stream = stream
            _capi.use_stream(cache._handle, stream)

    def _check_given(self, name: str, array: object) -> None:
        """Refuses to make an array for a result, which NumPy has no memory for."""
        if array is None and self._device is not None:
            raise InvalidArgument(f"{name} must be given: the result is written on {self._device.name}")

    def _check_without_v(self, layer: Any) -> None:
        """Refuses a put without V, unless the layer's V is a part of its K."""
        if self._owner_of(layer)._shape.v_first is None:
            raise TypeError("v must be an array, not None: this cache stores V by itself")

    def _end_pass(self) -> None:
        self._pass += 1
        for child in self._children:
            child._pass += 1
        watcher = type(self)._watcher
        if watcher is not None:
            watcher(self)


def stream_number(stream: Any) -> int:
    """A stream of a GPU as its number: None is the legacy default stream; an object of PyTorch, CuPy or
    cuda.core has one."""
    if stream is None:
        return 0
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    return integer("stream", stream)


def integer(name: str, value: Any) -> int:
    """An argument that must be an integer, NumPy's included."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


_F32_LEAST, _F32_MOST = 2.0**-149, (2 - 2.0**-23) * 2.0**127


def number(name: str, value: Any) -> float:
    """An argument that must be a real number of float32. One that float32 rounds to 0 would mean
    the default."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    except OverflowError:
        raise InvalidArgument(f"{name} is too large for float32") from None
    if result and math.isfinite(result) and not _F32_LEAST <= abs(result) <= _F32_MOST:
        raise InvalidArgument(f"{name} is {result!r}, which float32 does not hold")
    return result


def seed_of(name: str, value: Optional[int]) -> int:
    """A seed of dropout, of 64 bits; 0 for None."""
    seed = 0 if value is None else integer(name, value)
    if not 0 <= seed < 1 << 64:
        raise InvalidArgument(f"{name} is {seed}; it must be 0 to 2^64 - 1")
    return seed


def set_integers(desc: Any, **values: Any) -> None:
    """Sets fields of a descriptor. Raises an error that names a value which is not an integer or
    does not fit its field."""
    for name, value in values.items():
        index = integer(name, value)
        try:
            setattr(desc, name, index)
        except (OverflowError, TypeError):
            raise InvalidArgument(f"{name} {index} is no integer of 32 bits") from None


def destroy_quietly(destroy: Callable[[Any], None], handle: Any) -> None:
    """For finalizers. In a forked child the handle is invalid, and that error means nothing."""
    try:
        destroy(handle)
    except Error:
        pass


# ---- Functions that take many arguments by name --------------------------------------------------


def checks_names(function: Function) -> Function:
    """A wrong name of an argument raises an error that suggests the right one."""
    return cast(Function, _checked(function, inspect.signature(function), function))


def takes_what(
    init: Callable[..., Any],
) -> Callable[[Callable[[Dict[str, Any]], Result]], Callable[..., Result]]:
    """Gives a function of a dict the arguments of a constructor: names, types and defaults."""
    parameters = [*inspect.signature(init).parameters.values()][1:]  # without self

    def decorate(function: Callable[[Dict[str, Any]], Result]) -> Callable[..., Result]:
        signature = inspect.Signature(parameters, return_annotation="int")

        def call(**arguments: Any) -> Result:
            bound = signature.bind(**arguments)
            bound.apply_defaults()
            return function(bound.arguments)

        return _checked(function, signature, call)

    return decorate


def _checked(
    named: Callable[..., Any], signature: inspect.Signature, call: Callable[..., Any]
) -> Callable[..., Any]:
    parameters = signature.parameters.values()
    known = [each.name for each in parameters if each.name not in ("self", "cls")]
    by_name = [
        parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    ]
    by_position = len(parameters) - len(by_name)
    required = [name for name in by_name if signature.parameters[name].default is signature.empty]

    @functools.wraps(named)
    def checked(*positional: Any, **arguments: Any) -> Any:
        label = "kvc." + checked.__qualname__.replace(".__init__", "")
        if len(positional) > by_position:
            raise TypeError(
                f"{label}() takes its arguments by name: "
                + ", ".join(f"{name}=…" for name in by_name[:4])
            )
        for name in arguments:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1, 0.5)
                advice = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
                raise TypeError(f"{label}() has no argument {name!r}: {advice}")
        missing = [name for name in required if name not in arguments]
        if missing:
            raise TypeError(f"{label}() needs {', '.join(missing)}")
        return call(*positional, **arguments)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked
