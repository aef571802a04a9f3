"""The cache: keys, values and attention of several sequences."""

from __future__ import annotations

import inspect
import operator
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Union

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array
from ._descriptors import UNLIMITED, Kind, descriptors
from ._handles import Shape, checks_names, integer, number, set_integers, takes_what
from .contents import Contents
from .device import Device, device_of
from .encoder import Encoder
from .errors import Busy, InvalidArgument, InvalidHandle
from .info import Stats
from .passes import PADDING, Pass, Passes
from .sequences import Sequences

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Dtype

__all__ = ["PADDING", "UNLIMITED", "Cache", "Pass"]

Layers = Union[None, int, range, Tuple[int, int]]

_STATES = {
    _capi.KVC_STATE_IDLE: "idle",
    _capi.KVC_STATE_PASS: "pass",
    _capi.KVC_STATE_RESERVE: "reserve",
    _capi.KVC_STATE_POISONED: "poisoned",
}
_PAIRS = {"neighbours": _capi.KVC_ROPE_NEIGHBOURS, "halves": _capi.KVC_ROPE_HALVES}


class Cache(Passes, Contents, Encoder):
    """Keys and values of the tokens that a transformer has processed, and attention over them.

    Shapes; all are required:

    n_layers, n_kv_heads  of the model
    head_dim              elements of a key, and of a value unless head_dim_v differs
    capacity              positions that one sequence may hold. With limited memory (see `memory`)
                          it holds at most memory + keep_first + 2 * max_batch instead. In an encoder
                          cache: positions of one input

    Every kind of cache:

    kind                  "causal", or "encoder": for cross attention (see below). This version
                          raises NotSupported for "recurrent", "wrapper", "transformer" and
                          "lightning"
    dtype                 storage type of K and V: "f32", "f16" or "bf16", or NumPy's, such as
                          np.float16. dtype_k and dtype_v override it. Reserved types ("q8_0" …)
                          raise NotSupported
    max_sequences         sequences are 0 … max_sequences - 1
    max_batch             a pass has 1 … max_batch tokens, padding included
    max_q_heads           query heads that an attention call may have; 0: 16 * n_kv_heads
    strict                each position of a batch must be its sequence's next: no gaps
    zero_on_free          overwrite cells with zeros when they are freed: for several tenants in
                          one process
    prefault              touch all memory now, so that no page fault happens later

    Causal caches only. What a token sees:

    reach                 itself and `reach` positions before it; None: everything before it
    sliding_window        the same as Hugging Face counts it, where a window of W includes the token
                          itself: sliding_window=W is reach=W-1. (Ollama's windowSize is the
                          reach.) Pass at most one of the two; the reach is at least 1
    memory                positions kept for stepping back; None: the reach; kvc.UNLIMITED, or any
                          number from the capacity on: all. A reach limits memory by itself, a chunk
                          only if `memory` is given
    chunk                 attention restarts every `chunk` positions; None: never
    keep_first            positions below it stay visible whatever the reach
    position_free         keys carry no rotation: positions may move without touching them

    Causal caches only: cells that all sequences share (0: as many as the bounds can need), and, for
    callers with kernels of their own, cell_padding: the range that get() and mask() span is rounded
    outward to a multiple of it. mask_dtype ("f32", "f16" or "bool") is the type of the masks that
    mask() makes, in encoder caches too.

    Encoder caches only. They hold the keys and values of what an encoder read (an image, 30 seconds
    of audio, a source sentence), for cross attention. A token of a pass carries a new input
    (`carries_input` of begin); encoder_put() stores it once for each layer, or encoder_share() takes
    that of another sequence. This token and all later ones of its sequence see the whole of it,
    until another token carries the next. A sequence holds one input, its newest.

    inputs                that the cache holds at a time, those that the open pass replaces
                          included; 0: enough that begin() never raises CacheFull

    device                a Device; None: the CPU device that such caches share

    Attributes, read-only: kind, n_layers, n_kv_heads, head_dim_k, head_dim_v, max_sequences,
    closed.

    The constructor reserves all memory; no later call allocates any in the library. A cache may be
    passed from thread to thread. Reading calls may overlap each other, and stats() any call; any
    other overlap raises kvc.Busy. Calls that may take long release the GIL. Close the cache (or use
    `with`) to free its memory at once; otherwise it is freed when the cache is collected.

    Arrays are passed through the buffer protocol, `__array_interface__` or DLPack (NumPy, PyTorch,
    JAX) and must be on the CPU. They may be float32, float16 or bfloat16 (uint16 with dtype="bf16"
    too), whatever the storage type. Strides must be whole elements and not negative. Arrays are
    read and written in place during the call and never copied.

    Every method may raise InvalidHandle (the cache is closed), Busy and InvalidArgument. A method
    that raises has changed nothing (except for DeviceFailure and InternalError).

    Raises InvalidArgument, DtypeError, NotSupported, SizeOverflow, OutOfMemory.
    """

    @checks_names
    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Kind = "causal",
        head_dim_v: Optional[int] = None,
        dtype: Dtype = "f32",
        dtype_k: Dtype = None,
        dtype_v: Dtype = None,
        max_sequences: int = 1,
        max_batch: int = 512,
        cells: int = 0,
        max_q_heads: int = 0,
        strict: bool = False,
        zero_on_free: bool = False,
        prefault: bool = False,
        reach: Optional[int] = None,
        sliding_window: Optional[int] = None,
        memory: Optional[int] = None,
        chunk: Optional[int] = None,
        keep_first: int = 0,
        position_free: bool = False,
        cell_padding: int = 1,
        mask_dtype: Dtype = "f32",
        inputs: int = 0,
        device: Optional[Device] = None,
    ) -> None:
        desc, kind_desc = descriptors(locals())
        owner = device_of(device)
        self._handle = None
        self._pass = 0
        self._handle = _capi.kvc_cache_create(owner._handle, desc, kind_desc)
        self._shape = Shape(kind, *(getattr(desc, name) for name in Shape._fields[1:]))
        self._dtype_k = desc.dtype_k
        self._dtype_v = desc.dtype_v

    if not TYPE_CHECKING:  # a type checker would allow any name

        def __setattr__(self, name, value):
            """A mistyped setting must not be kept in silence. Subclasses have attributes of theirs."""
            if type(self) is Cache and not name.startswith("_") and not hasattr(Cache, name):
                raise AttributeError(
                    f"kvc.Cache has no attribute {name!r} to set: settings are arguments of "
                    "kvc.Cache(), bind_attention() and bind_rope()"
                )
            super().__setattr__(name, value)

    @staticmethod
    @takes_what(__init__)
    def memory_bytes(arguments: Dict[str, Any]) -> int:
        """The bytes that a cache with these arguments would reserve. Allocates nothing."""
        owner = device_of(arguments["device"])
        return _capi.kvc_cache_memory_bytes(owner._handle, *descriptors(arguments))

    def close(self) -> None:
        """Frees the memory, in any state. Closing twice is allowed.

        Arrays over views of get() stay readable: the memory is freed when the last of them is gone
        and no other thread is inside a call.
        """
        try:
            watcher = type(self)._watcher
            if watcher is not None and not self.closed:
                watcher(self)
        finally:
            self._pass += 1
            self._handle = None

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._handle is None

    def __enter__(self) -> Cache:
        if self.closed:
            raise InvalidHandle("the cache is closed: create another")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "" if self.kind == "causal" else f"{self.kind}, "
        return (
            f"<kvc.Cache {kind}{self.n_layers} layers, {self.n_kv_heads} KV heads of "
            f"{self.head_dim_k}/{self.head_dim_v}, {self._state()}>"
        )

    def _repr_html_(self) -> str:
        """What Jupyter shows: the numbers of stats(), and a map of the cells."""
        from ._html import html_of

        return html_of(self)

    def _state(self) -> str:
        if self.closed:
            return "closed"
        try:
            return self.stats().state
        except Busy:
            return "busy"
        except InvalidHandle:  # in a child of a fork
            return "of another process"

    # ---- Constants of the model ------------------------------------------------------------------

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
            _constants(alibi_slopes, n_q_heads, "alibi_slopes"),
            _constants(sinks, n_q_heads, "sinks"),
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
        rotated = n_dims if n_dims else (self.head_dim_k - first_dim) // 2 * 2
        _capi.kvc_bind_rope(
            self._handle,
            *self._layer_range(layers),
            desc,
            _constants(frequency_factors, rotated // 2, "frequency_factors"),
        )

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

    # ---- Watching ---------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """What the cache holds, at one moment between two calls. Never raises Busy and makes no
        call raise it: a metrics thread may read it while another thread works with the cache."""
        stats = _capi.kvc_stats()
        _capi.kvc_cache_stats(self._handle, stats)
        return Stats(
            _STATES[stats.state],
            stats.cells,
            stats.cells_used,
            stats.cells_shared,
            stats.bytes,
            stats.passes,
        )

    def digest(self) -> str:
        """128 bits over everything observable, as 32 hexadecimal digits.

        Equal states have equal digests, whatever cells hold them. Reads all K and V: for tests, not
        for the hot path.
        """
        first, second = _capi.kvc_state_digest(self._handle)
        return f"{first:016x}{second:016x}"

    def check(self) -> None:
        """Verifies every invariant. Raises InternalError, which names the broken one."""
        _capi.kvc_check(self._handle)


def _constants(values: Optional[Array], count: int, name: str) -> Optional[npt.NDArray[np.float32]]:
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


# An error about a call names the class that users know.
for _part in (Passes, Sequences, Contents, Encoder):
    for _method in vars(_part).values():
        if inspect.isfunction(_method):
            _method.__qualname__ = f"Cache.{_method.__name__}"
