"""Passes: a batch of tokens goes through the layers of the model."""

from __future__ import annotations

import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Iterable,
    Literal,
    Optional,
    Tuple,
    TypeVar,
    Union,
    cast,
    overload,
)

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, DLPackArray, HostArray, kind_of, new_result, with_dtype
from ._batch import listed, token_flags
from ._handles import CacheHandle, OwnsHandle, seed_of, stream_number
from ._words import layers_in_words
from .errors import BadState, CacheFull, Error, NotSupported

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import TypedDict, Unpack

    from ._arrays import Dtype, Integers
    from .cache import Cache

    class Extra(TypedDict, total=False):
        """The options of attention()."""

        bias: Optional[Array]
        mask: Optional[Array]
        weights: Optional[Array]
        lse: Optional[Array]
        dropout_seed: Optional[int]
        no_sinks: bool
        dtype: Dtype

    Out = TypeVar("Out", bound=Array)
    Other = TypeVar("Other", bound=DLPackArray)

PADDING: int = _capi.KVC_NONE
"""As the sequence of a token: padding, which belongs to no sequence and is not stored."""


class Pass(OwnsHandle):
    """An open pass of Cache.forward() or begin_rows(), for a `with` block.

    Commits the pass when the block ends, or aborts it when the block raises. If the block has put
    no K and V into some layer, aborts the pass and raises BadState, as begin() would: call commit()
    in the block to keep zeros there. If the block has ended the pass itself, does nothing: a pass
    that was opened later stays open.
    """

    _instead_of_a_copy = "it ends the pass that it was made for, once. Pass it on as it is"
    _instead_of_pickling = "it belongs to a cache of this process"

    def __init__(self, cache: Cache, n_tokens: int, *, rows: int = 0) -> None:
        self.cache = cache
        self.n_tokens = n_tokens
        self._rows = rows  # of a pass of rows; else 0
        self._pass = cache._pass

    @property
    def open(self) -> bool:
        """Whether the pass has not ended yet."""
        return self.cache._pass == self._pass

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if not self.open:
            return  # the block has ended the pass
        if kind is None:
            self._commit()
            return
        try:
            self.cache.abort()
        except Error:
            pass  # the exception of the block matters more than a failed abort

    def _commit(self) -> None:
        try:
            # Any cache has room for padding, so this fails only if begin() would refuse to commit the
            # pass.
            if self._rows:
                nothing = np.zeros(self._rows, np.int32)
                _capi.kvc_fits_rows(self.cache._handle, 1, 0, nothing, None, None)
            else:
                _capi.kvc_fits(self.cache._handle, [0], [PADDING], None)
        except BadState as refusal:
            found = self._missing() or str(refusal).split(" in the open pass")[0]
            self.cache.abort()
            raise BadState(
                f"{found}, so this block aborted its pass: put every layer, or call commit() in the "
                "block to keep zeros, and states as they were"
            ) from None
        self.cache.commit()

    def _missing(self) -> str:
        """Which layers lack K and V, in words; empty: none."""
        n_layers = self.cache.n_layers
        missing = [layer for layer in range(n_layers) if not self._was_put(layer)]
        if not missing:
            return ""
        words = layers_in_words(missing)
        return f"{n_layers - len(missing)} of {n_layers} layers were put, without {words}"

    def _was_put(self, layer: int) -> bool:
        """Whether the layer was put, if it has K and V."""
        try:
            _capi.kvc_get_codes(self.cache._handle, layer)
        except BadState:
            return False
        except NotSupported:  # a layer of states
            pass
        return True

    def __repr__(self) -> str:
        tokens = "1 token" if self.n_tokens == 1 else f"{self.n_tokens} tokens"
        return f"<kvc.Pass of {tokens}, {'open' if self.open else 'ended'}>"


class Passes(CacheHandle):
    """The part of kvc.Cache that runs passes."""

    def begin(
        self,
        positions: Integers,
        sequences: Union[int, Integers] = 0,
        *,
        sees_later: Optional[Iterable[int]] = None,
        types: Optional[Integers] = None,
        carries_input: Optional[Iterable[int]] = None,
        masked: Optional[Iterable[int]] = None,
        stream: Any = None,
        replay: bool = False,
    ) -> None:
        """Opens a pass of n_tokens tokens. If a pass is open and every layer was put, commits it.

        positions   [n_tokens], within a sequence strictly ascending, from its next on. Anything
                    that holds integers; an int32 array is copied fastest
        sequences   [n_tokens], or one sequence for all. kvc.PADDING makes a token padding: it takes
                    no cell, its position is ignored, its rows of k, v, q, bias and mask are never
                    read, and its result is 0 (minus infinity in lse)
        sees_later  indexes of tokens that also see later tokens of their sequence; not of padding
        types       [n_tokens], 0 (none) to 65535. Tokens of one sequence with the same type see each
                    other, later ones and ones outside the window too: an image sees itself whole.
                    They must be consecutive tokens of their sequence, so each image of a pass has
                    a type of its own; padding has none
        carries_input
                    encoder caches: indexes of tokens that carry a new input, at most one for each
                    sequence. These and all later tokens of their sequence see the whole of it,
                    until another token carries the next
        masked      lightning caches: indexes of tokens that add nothing to the state while time passes;
                    their rows of k and v are not read, and they have an output
        stream      of a GPU: what orders the pass's work. None: the legacy default stream; a number
                    in DLPack's sense, or a stream of PyTorch, CuPy or cuda.core
        replay      a CUDA graph that begin_reserve() was captured in does the pass: launch it on the
                    stream before you commit

        Raises CacheFull, BadState (the open pass is not fully put; nothing was captured; the stream is
        being captured).
        """
        flags = token_flags(positions, sees_later, types, carries_input, masked)
        number = stream_number(stream)
        how = _capi.KVC_BEGIN_REPLAY if replay else 0
        _capi.kvc_begin(self._handle, positions, sequences, flags, how, number or None)
        self._note_stream(number)
        self._end_pass()

    def begin_reserve(self, n_tokens: int, *, stream: Any = None) -> None:
        """Opens a pass that plans nothing, to size a graph for the worst case.

        get() and mask() have their largest shapes, put() and attention() check their arguments and
        do nothing. Any call may end the pass, and ending it changes nothing.

        While the stream is captured, they become part of the graph, for passes of up to n_tokens tokens
        that begin with `replay=True`. The capture holds the addresses of their arrays.
        """
        number = stream_number(stream)
        _capi.kvc_begin_reserve(self._handle, n_tokens, number or None)
        self._note_stream(number)
        self._end_pass()

    def forward(
        self,
        positions: Integers,
        sequences: Union[int, Integers] = 0,
        *,
        sees_later: Optional[Iterable[int]] = None,
        types: Optional[Integers] = None,
        carries_input: Optional[Iterable[int]] = None,
        masked: Optional[Iterable[int]] = None,
        stream: Any = None,
        replay: bool = False,
    ) -> Pass:
        """begin() for a `with` block: commits when the block ends, aborts when it raises or has not
        put every layer, which then raises BadState."""
        positions = listed(positions)
        self.begin(
            positions,
            sequences,
            sees_later=sees_later,
            types=types,
            carries_input=carries_input,
            masked=masked,
            stream=stream,
            replay=replay,
        )
        return Pass(cast("Cache", self), len(positions))

    def fits(
        self,
        positions: Integers,
        sequences: Union[int, Integers] = 0,
        *,
        sees_later: Optional[Iterable[int]] = None,
        types: Optional[Integers] = None,
        carries_input: Optional[Iterable[int]] = None,
        masked: Optional[Iterable[int]] = None,
    ) -> bool:
        """Whether begin() would find room for this batch: False where it would raise CacheFull.

        Raises any other exception that begin() would raise. Changes nothing.
        """
        flags = token_flags(positions, sees_later, types, carries_input, masked)
        try:
            _capi.kvc_fits(self._handle, positions, sequences, flags)
        except CacheFull:
            return False
        return True

    def put(self, layer: int, k: Array, v: Optional[Array] = None, *, dtype: Dtype = None) -> None:
        """Stores one layer's keys and values for the open pass, converted to the storage type.

        k      [n_tokens, n_kv_heads, head_dim_k]; the caller rotates keys, if the model does
        v      [n_tokens, n_kv_heads, head_dim_v]; None if V is a part of K (see `v_first`)
        dtype  element type of uint16 arrays ("bf16" or "f16")

        In an encoder cache these are the [length, …] of the only input that the pass carries (see
        encoder_put).

        Raises BadState (no pass), ShapeError, DtypeError.
        """
        if v is None:
            self._check_without_v(layer)
        if dtype is not None:
            k, v = with_dtype(k, dtype), with_dtype(v, dtype)
        _capi.kvc_put(self._handle, layer, k, v)

    @overload
    def attention(
        self, layer: int, q: Array, out: Out, *, numpy: bool = ..., **extra: Unpack[Extra]
    ) -> Out: ...
    @overload
    def attention(
        self, layer: int, q: Array, out: None = ..., *, numpy: Literal[True], **extra: Unpack[Extra]
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def attention(
        self,
        layer: int,
        q: HostArray,
        out: None = ...,
        *,
        numpy: bool = ...,
        **extra: Unpack[Extra],
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def attention(
        self, layer: int, q: Other, out: None = ..., *, numpy: bool = ..., **extra: Unpack[Extra]
    ) -> Other: ...
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
        dropout_seed: Optional[int] = None,
        no_sinks: bool = False,
        dtype: Dtype = None,
        numpy: bool = False,
    ) -> Array:
        """Computes attention of the pass's queries over what each may see, in a layer that was put.

        q        [n_tokens, n_q_heads, head_dim_k]
        out      [n_tokens, n_q_heads, head_dim_v], written: any array that may be; None: a new
                 float32 array of the kind of q, a PyTorch tensor for a tensor, JAX's for JAX's
        bias     [n_q_heads, n_tokens, history], added to the scores; minus infinity hides
        mask     bool [n_q_heads, n_tokens, history]: False hides. It can hide more than the cache's
                 own rules do, never less. (A mask of 0 and minus infinity is a bias.)
        weights  float32 [n_q_heads, n_tokens, history], written if given: the weight of each value.
                 For analysis, not for speed
        lse      float32 [n_tokens, n_q_heads], written if given: natural log of the sum of
                 exponentials over visible keys
        dropout_seed
                 0 … 2^64 - 1: drops weights as dropout_mask() says, with the dropout_prob of the layer's
                 operator (bind_operator); weights are what is left, lse is that of all keys. None: no
                 dropout
        no_sinks
                 a partial result for merge_attention(): the layer's sinks take no part
        dtype    element type of uint16 arrays ("bf16" or "f16")
        numpy    True: a new array is NumPy's, whatever the kind of q

        Column i of bias, mask and weights is cell history(layer)[i], as runs() numbers cells. Bias
        and mask are broadcast: an extent may be 1, and leading dimensions may be missing
        ([n_tokens, history], [history]). A mask must be bool: pass uint8 as array.view(bool), which
        copies nothing.

        Returns out. A row that sees nothing is 0 (minus infinity in lse).
        Raises BadState (no pass, or no put of this layer), ShapeError, DtypeError.
        """
        result: Any = self._new_result(layer, q) if out is None else out
        given = q, result, bias
        if dtype is not None:
            given = tuple(with_dtype(array, dtype) for array in given)
        _capi.kvc_attention(
            self._handle, layer, *given, mask, weights, lse, *_flags_of(dropout_seed, no_sinks)
        )
        is_made = out is not None or self._device is not None
        returned: Array = result if numpy or is_made else kind_of(q, result)
        return returned

    @overload
    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Optional[Array],
        q: Array,
        out: Out,
        *,
        numpy: bool = ...,
        **extra: Unpack[Extra],
    ) -> Out: ...
    @overload
    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Optional[Array],
        q: Array,
        out: None = ...,
        *,
        numpy: Literal[True],
        **extra: Unpack[Extra],
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Optional[Array],
        q: HostArray,
        out: None = ...,
        *,
        numpy: bool = ...,
        **extra: Unpack[Extra],
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Optional[Array],
        q: Other,
        out: None = ...,
        *,
        numpy: bool = ...,
        **extra: Unpack[Extra],
    ) -> Other: ...
    def put_attention(
        self,
        layer: int,
        k: Array,
        v: Optional[Array],
        q: Array,
        out: Optional[Array] = None,
        *,
        bias: Optional[Array] = None,
        mask: Optional[Array] = None,
        weights: Optional[Array] = None,
        lse: Optional[Array] = None,
        dropout_seed: Optional[int] = None,
        no_sinks: bool = False,
        dtype: Dtype = None,
        numpy: bool = False,
    ) -> Array:
        """put() and attention() in one call. Checks all arguments before it stores anything.

        v is None if V is a part of K. Returns out.
        """
        if v is None:
            self._check_without_v(layer)
        result: Any = self._new_result(layer, q) if out is None else out
        given = k, v, q, result, bias
        if dtype is not None:
            given = tuple(with_dtype(array, dtype) for array in given)
        _capi.kvc_put_attention(
            self._handle, layer, *given, mask, weights, lse, *_flags_of(dropout_seed, no_sinks)
        )
        is_made = out is not None or self._device is not None
        returned: Array = result if numpy or is_made else kind_of(q, result)
        return returned

    def _new_result(self, layer: int, q: Array) -> Any:
        """An array for the result of a query; on a GPU only PyTorch's tensors make one."""
        head_dim = self._owner_of(layer)._shape.head_dim_v
        if self._device is None:
            return new_result(q, head_dim)
        if not hasattr(q, "new_empty"):
            self._check_given("out", None)
        made: Any = q
        return made.new_empty((*made.shape[:-1], head_dim), dtype=sys.modules["torch"].float32)

    def set_causal(self, sees_later: Iterable[int] = ()) -> None:
        """Replaces the set of tokens of the open pass that also see later tokens of their sequence.

        sees_later  indexes into the batch; a repeated one counts once, padding has no effect; none:
                    all tokens are causal

        Raises BadState (no pass), InvalidArgument (an index outside the batch).
        """
        _capi.kvc_set_causal(self._handle, listed(sees_later))

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


def _flags_of(dropout_seed: Optional[int], no_sinks: bool) -> Tuple[int, int]:
    """The flags and the seed of a call of attention."""
    flags = _capi.KVC_EXTRA_NO_SINKS if no_sinks else 0
    if dropout_seed is None:
        return flags, 0
    return flags | _capi.KVC_EXTRA_DROPOUT, seed_of("dropout_seed", dropout_seed)
