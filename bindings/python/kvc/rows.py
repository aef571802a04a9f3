"""Batches of rows, which transformer and lightning caches take as passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Tuple, Union, cast

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, with_dtype
from ._batch import int32s, shown
from ._handles import CacheHandle, integer, stream_number
from .errors import CacheFull, InvalidArgument
from .passes import Pass
from .storage import Codes, codes_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Dtype, Integers
    from .cache import Cache

    Int32s = npt.NDArray[np.int32]
    Mask = Union[Array, npt.ArrayLike]


class Rows(NamedTuple):
    """Where rows continue and begin."""

    index: npt.NDArray[np.int32]  # type: ignore[assignment]  # it hides a method of tuples
    """[n] where each row continues; padding on its left counts"""
    starts: npt.NDArray[np.int32]
    """[n] the position below which each row is padding: stored, never seen"""


class Batches(CacheHandle):
    """The part of kvc.Cache that works on rows: row b of a batch is sequence b."""

    def begin_rows(
        self,
        q_len: int,
        *,
        valid: Union[None, int, Integers] = None,
        attention_mask: Optional[Mask] = None,
        token_types: Optional[npt.ArrayLike] = None,
        postpadded: bool = False,
        causal: Optional[bool] = None,
        stream: Any = None,
        replay: bool = False,
    ) -> Pass:
        """Opens a pass of q_len tokens in every row. If a pass is open and every layer was put, commits
        it.

        The first valid[b] tokens continue row b, at its index; the others are padding: their rows of k,
        v, q, bias and mask are never read, and their results are 0 (minus infinity in lse). Transformer
        caches take rows alone, lightning caches also begin().

        q_len           1 … max_batch / max_sequences
        valid           [batch] 0 … q_len, or one number for all; None: q_len each. A row that is
                        finished takes 0 tokens
        attention_mask  bool or integers, of which 0 hides; None: nothing is hidden. It is copied, holds
                        for this pass alone, and can hide more than the cache's own rules do, never
                        less. Transformer caches: [batch, n] or [batch, 1, q_len, n], a column per
                        position; n reaches at least as far as each row will, and columns beyond it are
                        not hidden. NotSupported in a ring. Lightning caches: [batch, q_len]; a hidden
                        token adds nothing to the state while time passes
        token_types     [batch, q_len], 0: none. Tokens of a row and pass with the same type see each
                        other, later ones too
        postpadded      valid is None and read off attention_mask: of a row's new columns those that it
                        shows come first, and as many tokens count
        causal          None: as the cache; False: every token also sees the later ones of its row;
                        True: none does
        stream          of a GPU, as begin() takes it
        replay          a CUDA graph does the pass, as in begin()

        In such a pass [batch, q_len] stands for n_tokens in the shapes of all arrays:

        k, v (put)                 [batch, q_len, n_kv_heads, …]
        q, out                     [batch, q_len, n_q_heads, head_dim]
        lse                        [batch, q_len, n_q_heads]
        bias, mask, weights        [batch, n_q_heads, q_len, columns], broadcast as ever
        what mask() writes         [batch, 1, q_len, columns]
        what get() … lend or copy  [batch, columns, n_kv_heads, …]

        Token i of row b has the number b * q_len + i, which is what set_causal() takes.

        Returns a Pass for a `with` block, which commits when the block ends and aborts when it raises
        or has not put every layer; or ignore it, and commit() ends the pass.

        Raises CacheFull (names the row; no row has changed), BadState (the open pass is not fully put),
        ShapeError, NotSupported.
        """
        arguments = self._rows_arguments(
            q_len, valid, attention_mask, token_types, postpadded, causal, replay
        )
        number = stream_number(stream)
        _capi.kvc_begin_rows(self._handle, *arguments, number or None)
        self._note_stream(number)
        self._end_pass()
        if causal and not all(each._shape.is_causal for each in (self, *self._children)):
            _capi.kvc_set_causal(self._handle, ())
        batch = self._shape.max_sequences
        return Pass(cast("Cache", self), batch * integer("q_len", q_len), rows=batch)

    def begin_rows_reserve(self, q_len: int, *, stream: Any = None) -> None:
        """Opens a pass of rows that plans nothing, as begin_reserve() does."""
        number = stream_number(stream)
        flags = _capi.KVC_ROWS_RESERVE
        _capi.kvc_begin_rows(self._handle, q_len, flags, None, None, None, number or None)
        self._note_stream(number)
        self._end_pass()

    def fits_rows(
        self,
        q_len: int,
        *,
        valid: Union[None, int, Integers] = None,
        attention_mask: Optional[Mask] = None,
        token_types: Optional[npt.ArrayLike] = None,
        postpadded: bool = False,
        causal: Optional[bool] = None,
    ) -> bool:
        """Whether begin_rows() would find room for this batch: False where it would raise CacheFull.

        Raises any other exception that begin_rows() would raise. Changes nothing.
        """
        arguments = self._rows_arguments(
            q_len, valid, attention_mask, token_types, postpadded, causal
        )
        try:
            _capi.kvc_fits_rows(self._handle, *arguments)
        except CacheFull:
            return False
        return True

    def rows(self, begin: int = 0, end: Optional[int] = None) -> Rows:
        """Index and starts of rows [begin, end), as if the open pass were committed.

        end  None: to the last row
        """
        last = self._shape.max_sequences if end is None else integer("end", end)
        n = last - integer("begin", begin)
        if n < 0:
            raise InvalidArgument(f"begin is {begin}, behind end, which is {last}")
        found = Rows(np.zeros(n, np.int32), np.zeros(n, np.int32))
        _capi.kvc_rows_query(self._handle, begin, n, *found)
        return found

    def rows_set(
        self,
        index: Optional[Integers] = None,
        starts: Optional[Integers] = None,
        *,
        begin: int = 0,
    ) -> None:
        """Sets index and starts of rows [begin, begin + n), in all of them or in none. Ends an open pass,
        as remove() does.

        index   [n]; None: stays. A row goes back: what lies at or behind the index is dropped. Only an
                empty row of a ring may go anywhere, up to 2^31 - 3. In a lightning cache the index is a
                label of time: the state stays, checkpoints are dropped, and 0 empties the row
        starts  [n]; None: stay. 0 … capacity; of a ring any position; of a lightning cache 0

        Raises BadState (the open pass is not fully put), WindowLost (a ring no longer holds what a token
        at that index would see), InvalidArgument.
        """
        given: Any = {"index": index, "starts": starts}
        arrays = {
            name: None if each is None else int32s(name, each, ("n",))
            for name, each in given.items()
        }
        counts = {len(each) for each in arrays.values() if each is not None}
        if len(counts) != 1:
            raise InvalidArgument(
                "index and starts have different lengths"
                if counts
                else "neither index nor starts is given"
            )
        _capi.kvc_rows_set(self._handle, begin, counts.pop(), arrays["index"], arrays["starts"])
        self._end_pass()

    def insert(self, other: Cache, slot: int = 0) -> None:
        """Puts all rows of another cache in the place of rows [slot, slot + rows of other): what they
        hold, byte for byte, index and starts; of a lightning cache states and checkpoints. What these
        rows held is gone. Ends an open pass, as remove() does.

        other  of the same kind, on the same device, with the same layers, heads, dimensions and storage;
               capacity may differ except in rings, and so may max_batch

        Raises InvalidArgument (what differs), DeviceMismatch, BadState (a pass of other is open, or the
        open pass is not fully put), CacheFull (a row of other reaches beyond the capacity).
        """
        if not isinstance(other, CacheHandle):
            raise TypeError(f"other must be a kvc.Cache, not {type(other).__name__}")
        _capi.kvc_insert(self._handle, other._handle, slot)
        self._end_pass()

    def rows_view(self, layer: int) -> Codes:
        """Read-only views of all columns of all rows of a layer of a transformer cache, as they are
        stored, without a pass and without a copy.

        Returns (k, k_scales, v, v_scales): codes [batch, columns, heads, codes_per_row] and scales
        [batch, columns, heads, scales_per_row], as get_codes() does; for f32, f16 and bf16 the codes are
        the numbers. Columns that hold no position hold anything. Valid until a pass begins or ends;
        put() and rows_fill() change what they show.
        """
        described = _capi.kvc_rows_view(self._handle, layer)
        return codes_of(self._lender_of(layer), described, "rows_view")

    def rows_fill(
        self,
        layer: int,
        k: Optional[Array] = None,
        v: Optional[Array] = None,
        *,
        k_scales: Optional[Array] = None,
        v_scales: Optional[Array] = None,
        begin: int = 0,
        dtype: Dtype = None,
    ) -> None:
        """Replaces what rows [begin, begin + n) of a transformer cache hold in one layer.

        k, v                [n, c, heads, …], c up to the columns: numbers (float32, float16, bfloat16),
                            which are stored as put() does, or codes as rows_view() lends them. None:
                            stays. Columns that hold no position are not read, and columns from c on stay
        k_scales, v_scales  beside codes with stored scales; else None
        dtype               element type of uint16 arrays of numbers ("bf16" or "f16"); None: bare bits
                            are what the cache stores

        So a cache is made from arrays: begin_rows() with the lengths as `valid`, commit() without a put,
        rows_fill() for each layer, rows_set() with the starts.

        Raises BadState (a pass is open), ShapeError, DtypeError, InvalidArgument.
        """
        shape = self._owner_of(layer)._shape
        given = []
        for array, stored in ((k, shape.dtype_k), (v, shape.dtype_v)):
            bits = (array, stored) if dtype is None else with_dtype(array, dtype)
            given.append(None if array is None else bits)
        if k is None and v is None:
            raise InvalidArgument("neither k nor v is given")
        _capi.kvc_rows_fill(self._handle, layer, begin, given[0], k_scales, given[1], v_scales)

    def _rows_arguments(
        self,
        q_len: int,
        valid: Union[None, int, Integers],
        attention_mask: Optional[Mask],
        token_types: Optional[npt.ArrayLike],
        postpadded: bool,
        causal: Optional[bool],
        replay: bool = False,
    ) -> Tuple[int, int, Optional[Int32s], Any, Optional[Int32s]]:
        """The arguments of kvc_begin_rows(), but the stream."""
        batch = self._shape.max_sequences
        flags = _capi.KVC_ROWS_POSTPADDED if postpadded else 0
        if replay:
            flags |= _capi.KVC_ROWS_REPLAY
        if causal is not None and not causal:
            flags |= _capi.KVC_ROWS_NOT_CAUSAL
        lengths = types = None
        if valid is not None:
            each = np.broadcast_to(valid, (batch,)) if np.ndim(valid) == 0 else valid
            lengths = int32s("valid", each, (batch,))
        if token_types is not None:
            types = int32s("token_types", token_types, (batch, integer("q_len", q_len)))
        return q_len, flags, lengths, shown("attention_mask", attention_mask), types
