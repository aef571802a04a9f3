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
from ._arrays import Array, dtype_code, meaning, numpy_dtype
from ._descriptors import UNLIMITED, Geometry, causal_descriptors
from ._handles import set_integers
from .device import Device, default_device
from .errors import CacheFull, Error, InvalidArgument
from .info import Run, SequenceInfo, Stats
from .views import View

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["UNLIMITED", "Cache", "Pass"]

Integers = Union[Sequence[int], np.ndarray]
Layers = Union[None, int, range, Tuple[int, int]]

_STATES = {
    _capi.KVC_STATE_IDLE: "idle",
    _capi.KVC_STATE_PASS: "pass",
    _capi.KVC_STATE_RESERVE: "reserve",
    _capi.KVC_STATE_POISONED: "poisoned",
}
_PAIRS = {"neighbours": _capi.KVC_ROPE_NEIGHBOURS, "halves": _capi.KVC_ROPE_HALVES}


class Cache:
    """Keys and values of the tokens that a transformer has processed, and attention over them.

    Shapes, all required, all hard bounds:

    n_layers, n_kv_heads  of the model
    head_dim              elements of a key vector (and of a value vector, unless head_dim_v says
                          otherwise)
    capacity              positions that one sequence may hold

    Storage and pool:

    dtype                 storage type: "f32", "f16" or "bf16"; dtype_k and dtype_v set them apart
    max_sequences         sequences are 0 … max_sequences - 1
    max_batch             a pass has 1 … max_batch tokens
    cells                 cells that all sequences share; 0: as many as the bounds can need
    max_q_heads           query heads that an attention may have; 0: 16 * n_kv_heads

    What a token sees:

    reach                 itself and `reach` positions before it; None: everything before it
    sliding_window        the same in the terms of Hugging Face, where a window of W counts the
                          token itself: sliding_window=W is reach=W-1. (Ollama's windowSize is the
                          reach itself.) Give one of the two, at least reach 1
    memory                positions kept for stepping back, with a reach or a chunk; None: the
                          reach; kvc.UNLIMITED: all
    chunk                 attention restarts every `chunk` positions; None: never
    keep_first            positions below it stay visible whatever the reach says

    For callers with kernels of their own: cell_padding (the range that get() and mask() span is
    rounded outward to a multiple of it) and mask_dtype ("f32" or "f16").

    position_free         keys carry no rotation: positions may move without touching them
    strict                each position of a batch is its sequence's next: no gaps
    zero_on_free          cells become zeros when they are freed: several tenants in one process
    prefault              touch all memory now, so that no page fault comes later

    device                a Device; None: the CPU device that such caches share

    All memory is reserved here; no later call allocates any in the library. A cache may be used
    from any thread, by one thread at a time (reading calls may overlap); kvc.Busy tells of an
    overlap. Calls that may take long release the GIL. Close it (or use `with`) to give the memory
    back at once; a forgotten cache is closed when it is collected.

    Arrays that come in speak the buffer protocol, `__array_interface__` or DLPack (NumPy, PyTorch,
    JAX) and lie on the CPU. They may be float32, float16 or bfloat16 (uint16 with dtype="bf16"
    too), whatever the storage type, with any strides that are whole elements and not negative.
    They are read or written in place during the call and never copied.

    Every method may raise InvalidHandle (closed), Busy and InvalidArgument. A method that raises
    has changed nothing (DeviceFailure and InternalError excepted).

    Raises InvalidArgument, DtypeError, SizeOverflow, OutOfMemory.
    """

    _watcher: ClassVar[Optional[Callable[[Cache], None]]] = None
    """Called when a pass has ended and before a cache is closed: kvc.inspect looks on."""

    def __init__(self, *, device: Optional[Device] = None, **geometry: Unpack[Geometry]) -> None:
        desc, causal = causal_descriptors(**geometry)
        owner = default_device() if device is None else device
        self._handle: Any = None  # a capsule whose last reference destroys the cache
        self._pass = 0  # counts what ends a pass: a view knows by it whether its own is over
        self._handle = _capi.kvc_cache_create(owner._handle, desc, causal)
        self.max_sequences: int = desc.max_sequences
        self.n_layers: int = desc.n_layers
        self.n_kv_heads: int = desc.n_kv_heads
        self.head_dim_k: int = desc.head_dim_k
        self.head_dim_v: int = desc.head_dim_v
        self._dtype_k: int = desc.dtype_k
        self._dtype_v: int = desc.dtype_v

    @staticmethod
    def memory_bytes(*, device: Optional[Device] = None, **geometry: Unpack[Geometry]) -> int:
        """The bytes that a cache with these arguments would reserve; allocates nothing."""
        owner = default_device() if device is None else device
        return _capi.kvc_cache_memory_bytes(owner._handle, *causal_descriptors(**geometry))

    def close(self) -> None:
        """Gives the memory back, whatever the state. Closing twice is fine.

        Arrays that were made of views of get() stay readable: while they exist, and while another
        thread is inside a call, the memory stays too.
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
        """Binds how layers attend. Layers never bound have the default scale and no options.

        n_q_heads     a multiple of n_kv_heads, at most max_q_heads
        layers        None: all; a layer, a range, or (begin, end)
        scale         0: 1 / sqrt(head_dim_k)
        softcap       x -> softcap * tanh(x / softcap) after the scale; 0: none
        alibi_slopes  [n_q_heads]: adds -slope * |distance|
        sinks         [n_q_heads]: one extra logit per query head, without a value

        Raises BadState while a pass is open.
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
        n_dims: int = 0,
        scale: float = 1.0,
        pairs: str = "neighbours",
        frequency_factors: Optional[Array] = None,
    ) -> None:
        """Tells how the caller rotates keys and queries, so that positions can move afterwards.

        Pair i turns by position * scale * base^(-2i / n_dims) / factor_i. kvc rotates nothing on
        put.

        layers             None: all; a layer, a range, or (begin, end)
        n_dims             leading dimensions that are rotated, even; 0: all
        pairs              "neighbours": (0, 1) (2, 3) …; "halves": (0, n_dims/2) …
        frequency_factors  [n_dims / 2]; None: all 1

        Raises BadState while a pass is open or when the cache is not empty.
        """
        if pairs not in _PAIRS:
            raise InvalidArgument(f'pairs {pairs!r} is neither "neighbours" nor "halves"')
        desc = _capi.kvc_rope_desc()
        set_integers(desc, pairs=_PAIRS[pairs], n_dims=n_dims)
        desc.base, desc.scale = float(base), float(scale)
        rotated = n_dims if n_dims else self.head_dim_k // 2 * 2
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
        """Opens a pass of n_tokens tokens; commits the pass that is open, if every layer was put.

        positions   [n_tokens], within a sequence strictly ascending from its next or above. Anything
                    that holds integers; an int32 array is copied fastest
        sequences   [n_tokens], or one sequence for all
        sees_later  indexes of tokens that see later tokens of their sequence too

        Raises CacheFull; BadState when the open pass is not fully put.
        """
        flags: Any = None
        if sees_later is not None:
            flags = np.zeros(len(positions), dtype=np.int32)
            flags[_indexes(sees_later, len(flags))] = _capi.KVC_TOKEN_SEES_LATER
        _capi.kvc_begin(self._handle, positions, sequences, flags, 0, None)
        self._end_pass()

    def begin_reserve(self, n_tokens: int) -> None:
        """Opens a pass that plans nothing, to size a graph for the worst case.

        get() and mask() have their largest shapes, put() and attention() check their arguments and
        do nothing, any call may end it, and ending it changes nothing.
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

    def fits(self, positions: Integers, sequences: Union[int, Integers] = 0) -> bool:
        """Whether begin() would find room: False where it would raise CacheFull.

        Raises what else begin() would raise. Nothing changes.
        """
        try:
            _capi.kvc_fits(self._handle, positions, sequences)
        except CacheFull:
            return False
        return True

    def put(self, layer: int, k: Array, v: Array, *, dtype: Any = None) -> None:
        """Stores one layer's keys and values of the open pass, converted to the storage type.

        k      [n_tokens, n_kv_heads, head_dim_k], rotated by the caller, if the model rotates
        v      [n_tokens, n_kv_heads, head_dim_v]
        dtype  what uint16 arrays stand for ("bf16" or "f16")

        Raises BadState (no pass), ShapeError, DtypeError.
        """
        if dtype is not None:
            k, v = meaning(k, dtype), meaning(v, dtype)
        _capi.kvc_put(self._handle, layer, k, v)

    def attention(
        self,
        layer: int,
        q: Array,
        out: Optional[Array] = None,
        *,
        lse: Optional[Array] = None,
        bias: Optional[Array] = None,
        mask: Optional[Array] = None,
        weights: Optional[Array] = None,
        dtype: Any = None,
    ) -> Array:
        """Attention of the pass's queries over what each may see, in a layer that was put.

        q        [n_tokens, n_q_heads, head_dim_k]
        out      [n_tokens, n_q_heads, head_dim_v], written; None: a new float32 array
        lse      float32 [n_tokens, n_q_heads], written when given: natural log of the sum of
                 exponentials over what is visible
        bias     [n_q_heads, n_tokens, history], added to the scores; minus infinity hides
        mask     bool [n_q_heads, n_tokens, history]: False hides what the cache's own rules would
                 show; True shows nothing that they hide. (A mask of 0 and minus infinity is a bias.)
        weights  float32 [n_q_heads, n_tokens, history], written when given: what each value counts
                 for. For looking, not for speed
        dtype    what uint16 arrays stand for ("bf16" or "f16")

        Column i of bias, mask and weights is cell history()[i], as runs() numbers cells. Bias and
        mask are broadcast: an extent may be 1, and leading dimensions may be missing ([n_tokens,
        history], [history]). A mask is bool and nothing else: uint8 goes in as array.view(bool),
        which copies nothing.

        Returns out. A row that sees nothing gets 0 (and minus infinity in lse).
        Raises BadState (no pass, or no put of this layer), ShapeError, DtypeError.
        """
        result = self._new_out(q) if out is None else out
        out = result
        if dtype is not None:
            q, out, bias = meaning(q, dtype), meaning(out, dtype), meaning(bias, dtype)
        if bias is None and mask is None and weights is None:
            _capi.kvc_attention(self._handle, layer, q, out, lse)
        else:
            _capi.kvc_attention_with(self._handle, layer, q, out, lse, bias, mask, weights)
        return result

    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Array,
        q: Array,
        out: Optional[Array] = None,
        *,
        lse: Optional[Array] = None,
        dtype: Any = None,
    ) -> Array:
        """put() and attention() in one call; all arguments are checked before anything is stored.

        Returns out.
        """
        result = self._new_out(q) if out is None else out
        out = result
        if dtype is not None:
            k, v = meaning(k, dtype), meaning(v, dtype)
            q, out = meaning(q, dtype), meaning(out, dtype)
        _capi.kvc_put_attention(self._handle, layer, k, v, q, out, lse)
        return result

    def _new_out(self, q: Array) -> np.ndarray:
        shape = q.shape if hasattr(q, "shape") else _capi.describe_array(q)[1]
        return np.empty((*shape[:-1], self.head_dim_v), dtype=np.float32)

    def set_causal(self, sees_later: Iterable[int] = ()) -> None:
        """Replaces the tokens of the open pass that see later tokens of their sequence too.

        sees_later  indexes into the batch; a repeated one counts once; none: all are causal

        Raises BadState (no pass), InvalidArgument (an index outside the batch).
        """
        _capi.kvc_set_causal(self._handle, _listed(sees_later))

    def commit(self) -> None:
        """Keeps the pass; layers that were not put hold zeros. Raises BadState (no pass)."""
        _capi.kvc_commit(self._handle)
        self._end_pass()

    def commit_prefix(self, sequences: Integers, keep: Integers) -> None:
        """Keeps of each named sequence its first tokens of this pass (speculative decoding).

        sequences  [n] sequences, each named once; those not named keep all
        keep       [n] how many tokens of it to keep, counted in batch order

        Raises BadState (no pass); InvalidArgument, and the pass stays open.
        """
        _capi.kvc_commit_prefix(self._handle, sequences, keep)
        self._end_pass()

    def abort(self) -> None:
        """Forgets the pass: the cache is as it was before begin(). Raises BadState (no pass)."""
        _capi.kvc_abort(self._handle)
        self._end_pass()

    def _end_pass(self) -> None:
        self._pass += 1
        if Cache._watcher is not None:
            Cache._watcher(self)

    # ---- Sequences -------------------------------------------------------------------------------

    def can_resume(self, sequence: int, want: int) -> int:
        """The largest position up to `want` at which the sequence can continue; changes nothing."""
        return _capi.kvc_can_resume(self._handle, sequence, want)

    def resume(self, sequence: int, want: int) -> int:
        """Drops what lies at or behind the position that can_resume() answers, and returns it.

        Never fails for want of history, but may answer 0: ask can_resume() first if dropping
        everything is too high a price. Raises BadState (the open pass is not fully put).
        """
        got = _capi.kvc_resume(self._handle, sequence, want)
        self._end_pass()
        return got

    def copy_prefix(self, src: int, dst: int, length: Optional[int] = None) -> int:
        """Makes dst a copy of the first positions of src; no K or V moves, both share the cells.

        length  positions wanted; None: all

        Returns how many dst got: what resume(src, length) would answer.
        Raises InvalidArgument (src is dst, length < 0), BadState.
        """
        wanted = _capi.KVC_SEQ_END if length is None else length
        got = _capi.kvc_copy_prefix(self._handle, src, dst, wanted)
        self._end_pass()
        return got

    def reorder(self, dst: Integers, src: Integers) -> None:
        """Makes each dst[i] a copy of src[i] as it was before the call (beam search).

        Raises InvalidArgument (a dst named twice), BadState.
        """
        _capi.kvc_reorder(self._handle, dst, src)
        self._end_pass()

    def remove(self, sequence: int, begin: int = 0, end: Optional[int] = None) -> None:
        """Releases the positions [begin, end) of a sequence; later ones move down.

        end  None: to the end

        Removing a middle part moves no K or V; keys then owe a rotation that attention pays. It
        needs bind_rope() or a position-free cache when later positions must move.

        Raises InvalidArgument, BadState, WindowLost, NotSupported (nothing says how keys turn).
        """
        _capi.kvc_remove(self._handle, sequence, begin, _capi.KVC_SEQ_END if end is None else end)
        self._end_pass()

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
        you multiply. kvc.View tells how NumPy, PyTorch and JAX read them without a copy, and how
        long.

        Raises BadState (no pass, or no put of this layer), CacheFull.
        """
        k, v = _capi.kvc_get(self._handle, layer)
        return View(self, k), View(self, v)

    def history(self) -> range:
        """The cells that the columns of get(), mask() and of a bias, mask or weights stand for.

        Column i is cell history()[i], as runs() numbers cells. get() may change it, by copying
        shared cells whose keys it turns. Raises BadState (no pass).
        """
        first, count = _capi.kvc_history(self._handle)
        return range(first, first + count)

    def mask(self, into: Optional[Array] = None) -> Array:
        """The mask that belongs to get(): 0 where a token sees a cell, minus infinity elsewhere.

        into  [n_tokens, history], float32 or float16, written; None: a new array of mask_dtype

        Returns into. Raises BadState (no pass), ShapeError, DtypeError.
        """
        if into is None:
            _, shape, _, code = _capi.kvc_mask_shape(self._handle)
            into = np.empty(shape, dtype=numpy_dtype(code))
        _capi.kvc_mask(self._handle, into)
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
        """Copies what a sequence holds in a layer, in order of position, keys turned for it.

        k            [count, n_kv_heads, head_dim_k], written; None: a new array; False: not wanted
        v            [count, n_kv_heads, head_dim_v], or [n_kv_heads, head_dim_v, count] with
                     transpose_v; written; None: a new array; False: not wanted
        dtype        element type of new arrays (None: the storage type), and what uint16 arrays
                     stand for

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

    def runs(self, sequence: int) -> List[Run]:
        """Where a sequence's tokens lie, in order of position, as the fewest runs of cells."""
        count = _capi.kvc_runs(self._handle, sequence, None)
        while True:
            table = np.empty((count, 4), dtype=np.int32)
            found = _capi.kvc_runs(self._handle, sequence, table)
            if found <= count:
                return [Run(*row) for row in table[:found].tolist()]
            count = found

    # ---- Watching --------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """How full the cache is."""
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

        Equal states have equal digests, whatever cells they lie in. Reads all K and V: a tool for
        tests, not for the hot path.
        """
        first, second = _capi.kvc_state_digest(self._handle)
        return f"{first:016x}{second:016x}"

    def check(self) -> None:
        """Walks every invariant. Raises InternalError that names the broken one."""
        _capi.kvc_check(self._handle)


# help() and editors show the arguments by name.
_OPTIONS = inspect.signature(causal_descriptors).parameters.values()
_DEVICE = inspect.Parameter(
    "device", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Optional[Device]"
)
Cache.__signature__ = inspect.Signature([*_OPTIONS, _DEVICE])  # type: ignore[attr-defined]


class Pass:
    """An open pass of Cache.forward(), for a `with` block.

    Commits when the block ends, unless it was ended inside (a later pass is not its own, and stays
    open); aborts when the block raises.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._pass = cache._pass

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self.cache._pass != self._pass:
            return  # ended inside the block
        if kind is None:
            self.cache.commit()
            return
        try:
            self.cache.abort()
        except Error:
            pass  # what the block raised says more than that the cache cannot abort any more


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


def _indexes(values: Iterable[int], count: int) -> np.ndarray:
    indexes = np.array(_listed(values), dtype=np.int64).reshape(-1)
    if len(indexes) and (indexes.min() < 0 or indexes.max() >= count):
        raise InvalidArgument(f"sees_later names tokens outside [0, {count})")
    return indexes


def _stored(array: Array, dtype: Any, code: int) -> Any:
    """Where gather() writes: uint16 arrays hold the storage type unless dtype says otherwise."""
    if array is None or dtype is not None:
        return meaning(array, dtype)
    return (array, code) if code != _capi.KVC_F32 else array
