"""The cache: keys, values and attention of several sequences."""

from __future__ import annotations

import inspect
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, dtype_code, numpy_dtype, with_dtype
from ._descriptors import UNLIMITED, Geometry, cache_descriptor, causal_descriptor, descriptors
from ._handles import set_integers
from .device import Device, default_device
from .errors import CacheFull, Error, InvalidArgument, NotSupported, WindowLost
from .info import Run, SequenceInfo, Stats
from .views import View

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PADDING", "UNLIMITED", "Cache", "Pass"]

Integers = Union[Sequence[int], np.ndarray]
Layers = Union[None, int, range, Tuple[int, int]]

PADDING = _capi.KVC_NONE
"""As the sequence of a token: padding, which belongs to no sequence and is not stored."""

_STATES = {
    _capi.KVC_STATE_IDLE: "idle",
    _capi.KVC_STATE_PASS: "pass",
    _capi.KVC_STATE_RESERVE: "reserve",
    _capi.KVC_STATE_POISONED: "poisoned",
}
_PAIRS = {"neighbours": _capi.KVC_ROPE_NEIGHBOURS, "halves": _capi.KVC_ROPE_HALVES}


class Cache:
    """Keys and values of the tokens that a transformer has processed, and attention over them.

    Shapes; all are required, and all are hard bounds:

    n_layers, n_kv_heads  of the model
    head_dim              elements of a key, and of a value unless head_dim_v differs
    capacity              positions that one sequence may hold

    Every kind of cache:

    kind                  "causal". This version raises NotSupported for "encoder", "recurrent",
                          "wrapper", "transformer" and "lightning"
    dtype                 storage type of K and V: "f32", "f16" or "bf16". dtype_k and dtype_v
                          override it. Reserved types ("q8_0" …) raise NotSupported
    max_sequences         sequences are 0 … max_sequences - 1
    max_batch             a pass has 1 … max_batch tokens, padding included
    cells                 cells that all sequences share; 0: as many as the bounds can need
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
    memory                positions kept for stepping back, if there is a reach or a chunk; None:
                          the reach; kvc.UNLIMITED: all
    chunk                 attention restarts every `chunk` positions; None: never
    keep_first            positions below it stay visible whatever the reach
    position_free         keys carry no rotation: positions may move without touching them

    Causal caches only, for callers with kernels of their own: cell_padding (the range that get()
    and mask() span is rounded outward to a multiple of it) and mask_dtype ("f32", "f16" or
    "bool").

    device                a Device; None: the CPU device that such caches share

    The constructor reserves all memory; no later call allocates any in the library. A cache may be
    passed from thread to thread. Reading calls may overlap each other, and stats() any call; any
    other overlap raises kvc.Busy. Calls that may take long release the GIL. Close the cache (or use `with`) to free its
    memory at once; otherwise it is freed when the cache is collected.

    Arrays are passed through the buffer protocol, `__array_interface__` or DLPack (NumPy, PyTorch,
    JAX) and must be on the CPU. They may be float32, float16 or bfloat16 (uint16 with dtype="bf16"
    too), whatever the storage type. Strides must be whole elements and not negative. Arrays are
    read and written in place during the call and never copied.

    Every method may raise InvalidHandle (the cache is closed), Busy and InvalidArgument. A method
    that raises has changed nothing (except for DeviceFailure and InternalError).

    Raises InvalidArgument, DtypeError, NotSupported, SizeOverflow, OutOfMemory.
    """

    _watcher: ClassVar[Optional[Callable[[Cache], None]]] = None
    """kvc.inspect sets it: called when a pass has ended and before a cache is closed."""

    def __init__(self, *, device: Optional[Device] = None, **geometry: Unpack[Geometry]) -> None:
        desc, kind_desc = descriptors(**geometry)
        owner = default_device() if device is None else device
        self._handle: Any = None  # a capsule that destroys the cache with its last reference
        self._pass = 0  # changes whenever a pass may have ended, which invalidates its views
        self._handle = _capi.kvc_cache_create(owner._handle, desc, kind_desc)
        self.max_sequences: int = desc.max_sequences
        self.n_layers: int = desc.n_layers
        self.n_kv_heads: int = desc.n_kv_heads
        self.head_dim_k: int = desc.head_dim_k
        self.head_dim_v: int = desc.head_dim_v
        self._dtype_k: int = desc.dtype_k
        self._dtype_v: int = desc.dtype_v

    @staticmethod
    def memory_bytes(*, device: Optional[Device] = None, **geometry: Unpack[Geometry]) -> int:
        """The bytes that a cache with these arguments would reserve. Allocates nothing."""
        owner = default_device() if device is None else device
        return _capi.kvc_cache_memory_bytes(owner._handle, *descriptors(**geometry))

    def close(self) -> None:
        """Frees the memory, in any state. Closing twice is allowed.

        Arrays over views of get() stay readable: the memory is freed when the last of them is gone
        and no other thread is inside a call.
        """
        try:
            if Cache._watcher is not None and not self.closed:
                Cache._watcher(self)
        finally:
            self._pass += 1
            self._handle = None

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._handle is None

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.stats().state
        return (
            f"<kvc.Cache {self.n_layers} layers, {self.n_kv_heads} KV heads of "
            f"{self.head_dim_k}/{self.head_dim_v}, {state}>"
        )

    # ---- Constants of the model ------------------------------------------------------------------

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
        desc.scale, desc.softcap = float(scale), float(softcap)
        _capi.kvc_bind_attention(
            self._handle,
            *self._layer_range(layers),
            desc,
            _constants(alibi_slopes, n_q_heads, "alibi_slopes"),
            _constants(sinks, n_q_heads, "sinks"),
        )

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
        desc.base, desc.scale = float(base), float(scale)
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
                raise InvalidArgument(f"layers {layers!r} has a step")
            return layers.start, layers.stop
        if isinstance(layers, tuple):
            begin, end = layers
            return begin, end
        return layers, layers + 1

    # ---- A pass ----------------------------------------------------------------------------------

    def begin(
        self,
        positions: Integers,
        sequences: Union[int, Integers] = 0,
        *,
        sees_later: Optional[Iterable[int]] = None,
    ) -> None:
        """Opens a pass of n_tokens tokens. If a pass is open and every layer was put, commits it.

        positions   [n_tokens], within a sequence strictly ascending, from its next on. Anything
                    that holds integers; an int32 array is copied fastest
        sequences   [n_tokens], or one sequence for all. kvc.PADDING makes a token padding: it takes
                    no cell, its position is ignored, its rows of k, v, q, bias and mask are never
                    read, and its result is 0 (minus infinity in lse)
        sees_later  indexes of tokens that also see later tokens of their sequence; not of padding

        Raises CacheFull, BadState (the open pass is not fully put).
        """
        flags = _token_flags(sees_later, positions)
        _capi.kvc_begin(self._handle, positions, sequences, flags, 0, None)
        self._end_pass()

    def begin_reserve(self, n_tokens: int) -> None:
        """Opens a pass that plans nothing, to size a graph for the worst case.

        get() and mask() have their largest shapes, put() and attention() check their arguments and
        do nothing. Any call may end the pass, and ending it changes nothing.
        """
        _capi.kvc_begin_reserve(self._handle, n_tokens)
        self._end_pass()

    def forward(
        self,
        positions: Integers,
        sequences: Union[int, Integers] = 0,
        *,
        sees_later: Optional[Iterable[int]] = None,
    ) -> Pass:
        """begin() for a `with` block: commits when the block ends, aborts when it raises."""
        self.begin(positions, sequences, sees_later=sees_later)
        return Pass(self)

    def fits(
        self,
        positions: Integers,
        sequences: Union[int, Integers] = 0,
        *,
        sees_later: Optional[Iterable[int]] = None,
    ) -> bool:
        """Whether begin() would find room for this batch: False where it would raise CacheFull.

        Raises any other exception that begin() would raise. Changes nothing.
        """
        flags = _token_flags(sees_later, positions)
        try:
            _capi.kvc_fits(self._handle, positions, sequences, flags)
        except CacheFull:
            return False
        return True

    def put(self, layer: int, k: Array, v: Array, *, dtype: Any = None) -> None:
        """Stores one layer's keys and values for the open pass, converted to the storage type.

        k      [n_tokens, n_kv_heads, head_dim_k]; the caller rotates keys, if the model does
        v      [n_tokens, n_kv_heads, head_dim_v]
        dtype  element type of uint16 arrays ("bf16" or "f16")

        Raises BadState (no pass), ShapeError, DtypeError.
        """
        if dtype is not None:
            k, v = with_dtype(k, dtype), with_dtype(v, dtype)
        _capi.kvc_put(self._handle, layer, k, v)

    def attention(
        self,
        layer: int,
        q: Array,
        out: Optional[Array] = None,
        *,
        bias: Optional[Array] = None,
        mask: Optional[Array] = None,
        weights: Optional[Array] = None,
        lse: Optional[Array] = None,
        dtype: Any = None,
    ) -> Array:
        """Computes attention of the pass's queries over what each may see, in a layer that was put.

        q        [n_tokens, n_q_heads, head_dim_k]
        out      [n_tokens, n_q_heads, head_dim_v], written; None: a new float32 array
        bias     [n_q_heads, n_tokens, history], added to the scores; minus infinity hides
        mask     bool [n_q_heads, n_tokens, history]: False hides. It can hide more than the cache's
                 own rules do, never less. (A mask of 0 and minus infinity is a bias.)
        weights  float32 [n_q_heads, n_tokens, history], written if given: the weight of each value.
                 For analysis, not for speed
        lse      float32 [n_tokens, n_q_heads], written if given: natural log of the sum of
                 exponentials over visible keys
        dtype    element type of uint16 arrays ("bf16" or "f16")

        Column i of bias, mask and weights is cell history(layer)[i], as runs() numbers cells. Bias
        and mask are broadcast: an extent may be 1, and leading dimensions may be missing
        ([n_tokens, history], [history]). A mask must be bool: pass uint8 as array.view(bool), which
        copies nothing.

        Returns out. A row that sees nothing is 0 (minus infinity in lse).
        Raises BadState (no pass, or no put of this layer), ShapeError, DtypeError.
        """
        result = self._new_out(q) if out is None else out
        out = result
        if dtype is not None:
            q, out, bias = with_dtype(q, dtype), with_dtype(out, dtype), with_dtype(bias, dtype)
        _capi.kvc_attention(self._handle, layer, q, out, bias, mask, weights, lse)
        return result

    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Array,
        q: Array,
        out: Optional[Array] = None,
        *,
        bias: Optional[Array] = None,
        mask: Optional[Array] = None,
        weights: Optional[Array] = None,
        lse: Optional[Array] = None,
        dtype: Any = None,
    ) -> Array:
        """put() and attention() in one call. Checks all arguments before it stores anything.

        Returns out.
        """
        result = self._new_out(q) if out is None else out
        out = result
        if dtype is not None:
            k, v, bias = with_dtype(k, dtype), with_dtype(v, dtype), with_dtype(bias, dtype)
            q, out = with_dtype(q, dtype), with_dtype(out, dtype)
        _capi.kvc_put_attention(self._handle, layer, k, v, q, out, bias, mask, weights, lse)
        return result

    def _new_out(self, q: Array) -> np.ndarray:
        shape = q.shape if hasattr(q, "shape") else _capi.describe_array(q)[1]
        return np.empty((*shape[:-1], self.head_dim_v), dtype=np.float32)

    def set_causal(self, sees_later: Iterable[int] = ()) -> None:
        """Replaces the set of tokens of the open pass that also see later tokens of their sequence.

        sees_later  indexes into the batch; a repeated one counts once, padding has no effect; none:
                    all tokens are causal

        Raises BadState (no pass), InvalidArgument (an index outside the batch).
        """
        _capi.kvc_set_causal(self._handle, _listed(sees_later))

    def commit(self) -> None:
        """Keeps the pass. Layers that were not put hold zeros. Raises BadState (no pass)."""
        _capi.kvc_commit(self._handle)
        self._end_pass()

    def commit_prefix(self, sequences: Integers, keep: Integers) -> None:
        """Keeps the first tokens of each named sequence in this pass (speculative decoding).

        sequences  [n] sequences, each named once; those that are not named keep all their tokens
        keep       [n] how many tokens to keep, counted in batch order

        Raises BadState (no pass), InvalidArgument. After an error the pass stays open.
        """
        _capi.kvc_commit_prefix(self._handle, sequences, keep)
        self._end_pass()

    def abort(self) -> None:
        """Discards the pass: the cache is as it was before begin(). Raises BadState (no pass)."""
        _capi.kvc_abort(self._handle)
        self._end_pass()

    def _end_pass(self) -> None:
        self._pass += 1
        if Cache._watcher is not None:
            Cache._watcher(self)

    # ---- Sequences -------------------------------------------------------------------------------

    def can_resume(self, sequence: int, want: int) -> int:
        """The largest position up to `want` at which the sequence can continue. Changes nothing."""
        return _capi.kvc_can_resume(self._handle, sequence, want)

    def resume(self, sequence: int, want: int) -> int:
        """Drops everything at or behind the position that can_resume() returns, and returns it.

        Never fails for lack of history, but may return 0: call can_resume() first if that is too
        expensive. Raises BadState (the open pass is not fully put).
        """
        got = _capi.kvc_resume(self._handle, sequence, want)
        self._end_pass()
        return got

    def copy_prefix(self, src: int, dst: int, length: Optional[int] = None) -> int:
        """Makes dst a copy of the first positions of src. Copies no K or V: both share the cells.

        length  positions wanted; None: all

        Returns how many positions dst has: what resume(src, length) would return.
        Raises InvalidArgument (src is dst, length < 0), BadState.
        """
        wanted = _capi.KVC_SEQ_END if length is None else length
        got = _capi.kvc_copy_prefix(self._handle, src, dst, wanted)
        self._end_pass()
        return got

    def reorder(self, dst: Integers, src: Integers) -> None:
        """Makes each dst[i] a copy of what src[i] was before the call (beam search).

        Raises InvalidArgument (a dst is named twice), BadState.
        """
        _capi.kvc_reorder(self._handle, dst, src)
        self._end_pass()

    def remove(self, sequence: int, begin: int = 0, end: Optional[int] = None) -> None:
        """Releases the positions [begin, end) of a sequence; later positions move down.

        end  None: to the end

        Removing a middle part moves no K or V. Later keys then have a pending rotation, which
        attention applies to the query instead. If later positions must move, the cache needs
        bind_rope() or must be position-free.

        Raises InvalidArgument, BadState, WindowLost, NotSupported (nothing says how keys rotate).
        """
        _capi.kvc_remove(self._handle, sequence, begin, _capi.KVC_SEQ_END if end is None else end)
        self._end_pass()

    def can_remove(self, sequence: int, begin: int = 0, end: Optional[int] = None) -> bool:
        """Whether remove() would succeed: False where it would raise WindowLost or NotSupported.

        Raises any other exception that remove() would raise. Changes nothing.
        """
        last = _capi.KVC_SEQ_END if end is None else end
        try:
            _capi.kvc_can_remove(self._handle, sequence, begin, last)
        except (WindowLost, NotSupported):
            return False
        return True

    def query(self, sequence: int) -> SequenceInfo:
        """What a sequence holds."""
        info = _capi.kvc_sequence_info()
        _capi.kvc_sequence_query(self._handle, sequence, info)
        return SequenceInfo(info.first, info.next, info.count, info.room, info.lost_below)

    # ---- Reading ---------------------------------------------------------------------------------

    def get(self, layer: int) -> Tuple[View, View]:
        """Read-only views of a layer's K and V over the cells that the pass may see.

        Returns (k [history, n_kv_heads, head_dim_k], v [history, n_kv_heads, head_dim_v]) in the
        storage type. Cells that no token of the pass sees may hold anything: apply mask() before
        you multiply. See kvc.View for how NumPy, PyTorch and JAX read them without a copy, and for
        how long.

        Raises BadState (no pass, or no put of this layer), CacheFull.
        """
        k, v = _capi.kvc_get(self._handle, layer)
        return View(self, k), View(self, v)

    def history(self, layer: int) -> range:
        """The cells that the columns of get(), mask() and of a bias, mask or weights stand for.

        Column i is cell history(layer)[i], as runs() numbers cells. get() may change the range,
        because it copies shared cells whose keys it rotates. In a causal cache all layers have the
        same history. A pass of padding alone has none. Raises BadState (no pass).
        """
        first, count = _capi.kvc_history(self._handle, layer)
        return range(first, first + count)

    def mask(self, layer: int, into: Optional[Array] = None) -> Array:
        """The mask that belongs to get(): 0 where a token sees a cell and minus infinity elsewhere,
        or, as bool, True and False.

        into  [n_tokens, history], float32, float16 or bool, written; None: a new array of
              mask_dtype

        Returns into. Raises BadState (no pass), ShapeError, DtypeError.
        """
        if into is None:
            _, shape, _, code = _capi.kvc_mask_shape(self._handle, layer)
            into = np.empty(shape, dtype=numpy_dtype(code))
        _capi.kvc_mask(self._handle, layer, into)
        return into

    def gather(
        self,
        layer: int,
        sequence: int,
        k: Optional[Array] = None,
        v: Optional[Array] = None,
        *,
        transpose_v: bool = False,
        dtype: Any = None,
    ) -> Tuple[Array, Array]:
        """Copies what a sequence holds in a layer, in order of position, with keys rotated for
        their present positions.

        k      [count, n_kv_heads, head_dim_k], written; None: a new array; False: not wanted
        v      [count, n_kv_heads, head_dim_v], or [n_kv_heads, head_dim_v, count] with transpose_v;
               written; None: a new array; False: not wanted
        dtype  element type of new arrays (None: the storage type) and of uint16 arrays

        count is query(sequence).count. Returns (k, v), with None for what was not wanted.
        Raises ShapeError, DtypeError.
        """
        if k is None or v is None:
            count = self.query(sequence).count
            shape = (count, self.n_kv_heads, self.head_dim_v)
            code_k = self._dtype_k if dtype is None else dtype_code(dtype)
            code_v = self._dtype_v if dtype is None else dtype_code(dtype)
            if k is None:
                k = np.empty((*shape[:2], self.head_dim_k), dtype=numpy_dtype(code_k))
            if v is None:
                v = np.empty((*shape[1:], count) if transpose_v else shape, numpy_dtype(code_v))
        k, v = (None if part is False else part for part in (k, v))
        _capi.kvc_gather(
            self._handle,
            layer,
            sequence,
            int(transpose_v),
            _stored(k, dtype, self._dtype_k),
            _stored(v, dtype, self._dtype_v),
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

    # ---- Watching --------------------------------------------------------------------------------

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


# help() and editors show the arguments by name.
_OPTIONS = [
    parameter
    for function in (cache_descriptor, causal_descriptor)
    for parameter in inspect.signature(function).parameters.values()
]
_DEVICE = inspect.Parameter(
    "device", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Optional[Device]"
)
Cache.__signature__ = inspect.Signature([*_OPTIONS, _DEVICE])  # type: ignore[attr-defined]


class Pass:
    """An open pass of Cache.forward(), for a `with` block.

    Commits the pass when the block ends, or aborts it when the block raises. If the block has ended
    the pass itself, does nothing: a pass that was opened later stays open.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._pass = cache._pass

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self.cache._pass != self._pass:
            return  # the block has ended the pass
        if kind is None:
            self.cache.commit()
            return
        try:
            self.cache.abort()
        except Error:
            pass  # the exception of the block matters more than a failed abort


def _constants(values: Optional[Array], count: int, name: str) -> Optional[np.ndarray]:
    """Small constants of the model as dense float32; the library copies them."""
    if values is None:
        return None
    constants = np.ascontiguousarray(values, dtype=np.float32)
    if constants.shape != (count,):
        raise InvalidArgument(f"{name} has shape {constants.shape}, not ({count},)")
    return constants


def _listed(values: Iterable[int]) -> Any:
    return values if hasattr(values, "__len__") else list(values)


def _token_flags(sees_later: Optional[Iterable[int]], positions: Integers) -> Optional[np.ndarray]:
    """Flags of a batch's tokens; None if there are none."""
    if sees_later is None:
        return None
    count = len(positions)
    indexes = np.array(_listed(sees_later), dtype=np.int64).reshape(-1)
    if len(indexes) and (indexes.min() < 0 or indexes.max() >= count):
        raise InvalidArgument(f"sees_later names tokens outside [0, {count})")
    flags = np.zeros(count, dtype=np.int32)
    flags[indexes] = _capi.KVC_TOKEN_SEES_LATER
    return flags


def _stored(array: Array, dtype: Any, code: int) -> Any:
    """An array that gather() writes. If dtype is None, bare 16-bit values are the storage type."""
    if array is None or dtype is not None:
        return with_dtype(array, dtype)
    return array, code
