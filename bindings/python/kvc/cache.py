"""The cache: keys, values and attention of several sequences."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Union, overload

from . import kvc_capi as _capi
from ._descriptors import UNLIMITED, Kind, Rotate, descriptors, shape_of
from ._handles import checks_names, takes_what
from .constants import Constants
from .contents import Contents
from .device import Device, device_of
from .encoder import Encoder
from .errors import Busy, InvalidHandle
from .info import Stats
from .lightning import Lightning
from .operators import Attending
from .passes import PADDING, Pass, Passes
from .rows import Batches
from .sequences import Sequences
from .states import States
from .storage import Storage
from .wrapper import Wrapping

if TYPE_CHECKING:
    from typing import Literal

    from typing_extensions import Unpack

    from . import _arguments
    from ._arrays import Dtype

__all__ = ["PADDING", "UNLIMITED", "Cache", "Pass"]

_STATES = {
    _capi.KVC_STATE_IDLE: "idle",
    _capi.KVC_STATE_PASS: "pass",
    _capi.KVC_STATE_RESERVE: "reserve",
    _capi.KVC_STATE_POISONED: "poisoned",
}


class Cache(Storage, Attending, Passes, Batches, Contents, Encoder, States, Lightning, Wrapping):
    """Keys and values of the tokens that a transformer has processed, and attention over them; or what
    takes their place in other layers: inputs of an encoder, states of a recurrence. wrap() and
    from_layers() make one cache of several, for models that mix them.

    Shapes; all are required (of a recurrent cache n_layers alone):

    n_layers, n_kv_heads  of the model
    head_dim              elements of a key, and of a value unless head_dim_v differs
    capacity              positions that one sequence may hold. With limited memory (see `memory`)
                          it holds at most memory + keep_first + 2 * max_batch instead. In an encoder
                          cache: positions of one input. In a transformer cache: of a row; with `ring`
                          those that it keeps. A lightning cache has none

    Every kind of cache:

    kind                  "causal", "encoder", "recurrent", "transformer" or "lightning"; wrap() makes a
                          "wrapper"
    max_sequences         sequences are 0 … max_sequences - 1
    max_batch             a pass has 1 … max_batch tokens, padding included
    strict                each position of a batch must be its sequence's next: no gaps
    zero_on_free          overwrite cells with zeros when they are freed: for several tenants in
                          one process
    prefault              touch all memory now, so that no page fault happens later

    Causal, encoder and transformer caches. How keys and values are stored:

    dtype                 "f32", "f16", "bf16" or NumPy's, such as np.float16: numbers. "q8_0",
                          "int8", "f8_e4m3", "f8_e5m2": codes of 8 bits. "q4_0", "nf4": codes of 4
                          bits. Attention reads codes where they lie. kvc.storage_info() tells how a
                          vector lies in each; f8 takes the scales of bind_scales()
    dtype_k, dtype_v      of K and of V, in place of dtype
    block                 nf4: values that share a scale, 16, 32, 64 or 128; 0: the largest of 64, 32
                          and 16 that divides head_dim
    rotate                store K and V rotated by a Hadamard matrix, which spreads outliers: "k", "v",
                          or True for both. For q8_0, q4_0, int8 and nf4; what attention returns is
                          not rotated

    max_q_heads           query heads that an attention call may have (lightning caches too); 0:
                          16 * n_kv_heads

    Causal and transformer caches:

    v_first               latent attention, as in DeepSeek V2: V is not stored, it is elements v_first
                          to v_first + head_dim_v - 1 of K. put() then takes k alone, dtype_v is not
                          given, and RoPE may not turn these elements
    interleaved           K and V of a token lie side by side: f32, f16 or bf16, the same for both

    What a token sees, in causal and transformer caches:

    reach                 itself and `reach` positions before it; None: everything before it (in a
                          ring capacity - 1, which is also the most)
    sliding_window        the same as Hugging Face counts it, where a window of W includes the token
                          itself: sliding_window=W is reach=W-1. (Ollama's windowSize is the
                          reach.) Pass at most one of the two; the reach is at least 1

    Causal caches only:

    memory                positions kept for stepping back; None: the reach; kvc.UNLIMITED, or any
                          number from the capacity on: all. A reach limits memory by itself, a chunk
                          only if `memory` is given
    chunk                 attention restarts every `chunk` positions; None: never
    keep_first            positions below it stay visible whatever the reach
    position_free         keys carry no rotation: positions may move without touching them

    Causal caches only: cells that all sequences share (0: as many as the bounds can need), and, for
    callers with kernels of their own, cell_padding: the range that get() and mask() span is rounded
    outward to a multiple of it. mask_dtype ("f32", "f16" or "bool") is the type of the masks that
    mask() makes, in encoder and transformer caches too.

    Encoder caches only. They hold the keys and values of what an encoder read (an image, 30 seconds
    of audio, a source sentence), for cross attention. A token of a pass carries a new input
    (`carries_input` of begin); encoder_put() stores it once for each layer, or encoder_share() takes
    that of another sequence. This token and all later ones of its sequence see the whole of it,
    until another token carries the next. A sequence holds one input, its newest.

    inputs                that the cache holds at a time, those that the open pass replaces
                          included; 0: enough that begin() never raises CacheFull

    Recurrent caches only. They hold states of fixed size in place of keys and values: of state-space
    models, gated delta rules, short convolutions. kvc computes no recurrence. It keeps states
    (state_get, state_put, state_conv …), copies sequences without copying states, and takes them
    back. A sequence can continue at its next, at a checkpoint and at 0, and nowhere else.

    state_shape           of a layer's recurrent state, such as (32, 128, 128); None: it has none
    conv_channels,        of its convolution state [conv_channels, conv_dim], the last inputs of a
    conv_dim              causal convolution that is conv_dim + 1 wide; 0: it has none
    dtype_state,          storage types of the two: "f32", "f16" or "bf16". Below f32, long sequences
    dtype_conv            drift
    checkpoints           states that a sequence keeps, to continue there again; 0: none
    checkpoint_interval   positions from one automatic checkpoint to the next, taken when a pass ends;
                          None: only checkpoint_take() takes any
    checkpoint_min_pos    the last position of a pass that leaves the first automatic one
    draft_states          a pass with up to draft_states + 1 tokens of a sequence keeps a state for
                          each, from which commit_prefix() chooses
    approximate           middle parts may be removed. States then still contain what was removed,
                          and query() says so
    host_checkpoints      checkpoints lie in host memory, where they are on a CPU in any case

    Transformer caches only: batches of rows, as EasyDeL's TransformerCache has them. Row b is
    sequence b, and max_sequences is the number of rows. begin_rows() begins their passes, of q_len
    tokens in each row, and q_len is at most max_batch / max_sequences. The token at position p of a
    row lies in column p of it.

    value_heads           heads of V; 0: n_kv_heads. With others attention is NotSupported
    ring                  a row goes on past the capacity and keeps its last `capacity` positions
    causal                False: tokens also see later ones of their pass, unless begin_rows() or
                          set_causal() says otherwise

    Lightning caches only: linear attention with decay (Lightning Attention, RetNet, MiniMax-01). They
    hold no keys and values: each sequence has a matrix [head_dim, head_dim_v] in float32 for each layer
    and head. bind_decay() comes first. Of the arguments above they take n_layers, n_kv_heads, head_dim,
    head_dim_v and max_q_heads, what every kind takes, and those of recurrent caches from `checkpoints`
    on. begin() and begin_rows() both work.

    block_tokens          that a pass multiplies as matrices at once, 1 … 1024; 0: the kernel's own
                          number
    fused                 every layer is attended by put_attention(): attention() raises NotSupported,
                          and prompts take less time on a CPU

    device                a Device; None: the CPU device that such caches share

    Attributes, read-only: kind, n_layers, n_kv_heads, head_dim_k, head_dim_v, max_sequences,
    children, closed.

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

    @overload
    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Literal["causal"] = ...,
        **options: Unpack[_arguments.Causal],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Literal["encoder"],
        **options: Unpack[_arguments.Encoder],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        n_layers: int,
        kind: Literal["recurrent"],
        **options: Unpack[_arguments.Recurrent],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Literal["transformer"],
        **options: Unpack[_arguments.Transformer],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        kind: Literal["lightning"],
        **options: Unpack[_arguments.Lightning],
    ) -> None: ...
    @checks_names
    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: Optional[int] = None,
        head_dim: Optional[int] = None,
        capacity: Optional[int] = None,
        kind: Kind = "causal",
        head_dim_v: Optional[int] = None,
        dtype: Dtype = None,
        dtype_k: Dtype = None,
        dtype_v: Dtype = None,
        block: int = 0,
        rotate: Rotate = False,
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
        interleaved: bool = False,
        v_first: Optional[int] = None,
        mask_dtype: Dtype = "f32",
        inputs: int = 0,
        state_shape: Union[None, int, Tuple[int, ...]] = None,
        conv_channels: int = 0,
        conv_dim: int = 0,
        dtype_state: Dtype = "f32",
        dtype_conv: Dtype = "f32",
        checkpoints: int = 24,
        checkpoint_interval: Optional[int] = 1664,
        checkpoint_min_pos: int = 16,
        draft_states: int = 0,
        approximate: bool = False,
        host_checkpoints: bool = False,
        value_heads: int = 0,
        ring: bool = False,
        causal: bool = True,
        block_tokens: int = 0,
        fused: bool = False,
        device: Optional[Device] = None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name != "self"}
        desc, kind_desc = descriptors(arguments)
        owner = device_of(device)
        self._handle = None
        self._pass = 0
        self._handle = _capi.kvc_cache_create(owner._handle, desc, kind_desc)
        self._shape = shape_of(arguments, desc, kind_desc)
        if owner.place != self._place:
            self._place, self._device = owner.place, owner
            self._note_stream(0)

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
    @overload
    def memory_bytes(
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Literal["causal"] = ...,
        **options: Unpack[_arguments.Causal],
    ) -> int: ...
    @staticmethod
    @overload
    def memory_bytes(
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Literal["encoder"],
        **options: Unpack[_arguments.Encoder],
    ) -> int: ...
    @staticmethod
    @overload
    def memory_bytes(
        *,
        n_layers: int,
        kind: Literal["recurrent"],
        **options: Unpack[_arguments.Recurrent],
    ) -> int: ...
    @staticmethod
    @overload
    def memory_bytes(
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        kind: Literal["transformer"],
        **options: Unpack[_arguments.Transformer],
    ) -> int: ...
    @staticmethod
    @overload
    def memory_bytes(
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        kind: Literal["lightning"],
        **options: Unpack[_arguments.Lightning],
    ) -> int: ...
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
            if watcher is not None and not self.closed and not self._is_wrapped():
                watcher(self)
        finally:
            self._pass += 1
            self._handle = None
            if self._owns_children:
                for child in self._children:
                    child._handle = None
                    child._pass += 1

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
        return f"<kvc.Cache {kind}{self.n_layers} layers, {self._contents()}, {self._state()}>"

    def _contents(self) -> str:
        """What it stores, in words."""
        if self.kind == "wrapper":
            return " + ".join(f"{each.n_layers} {each.kind}" for each in self.children)
        if self.kind != "recurrent":
            return f"{self.n_kv_heads} KV heads of {self.head_dim_k}/{self.head_dim_v}"
        shapes = {"states": self._shape.state_shape, "convolutions": self._shape.conv_shape}
        given = {name: "x".join(map(str, shape)) for name, shape in shapes.items() if shape}
        return ", ".join(f"{name} of {shape}" for name, shape in given.items())

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


# An error about a call names the class that users know.
for _part in (Constants, Sequences, *Cache.__bases__):
    for _method in vars(_part).values():
        _function = getattr(_method, "__func__", _method)  # of a class method
        if inspect.isfunction(_function):
            _function.__qualname__ = f"Cache.{_function.__name__}"
