"""States of recurrent layers: by copy, in place, and kept as checkpoints."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, List, Optional, TypeVar, Union, overload

import numpy as np

from . import kvc_capi as _capi
from ._arrays import Array, dtype_code, numpy_dtype, with_dtype
from ._handles import CacheHandle
from .errors import InvalidArgument
from .info import StateSequence
from .views import View

if TYPE_CHECKING:
    from typing import Literal

    import numpy.typing as npt

    from ._arrays import Description, Dtype

    Part = Literal["conv", "recurrent"]
    Into = TypeVar("Into", bound=Array)
    Stored = Union[np.float32, np.float16, np.uint16]  # bfloat16 is ml_dtypes' or uint16

_PARTS = {"conv": _capi.KVC_PART_CONV, "recurrent": _capi.KVC_PART_RECURRENT}


class States(CacheHandle):
    """The part of kvc.Cache that holds states of recurrent layers.

    A layer has two parts: "conv", [conv_channels, conv_dim], the last inputs of a causal
    convolution, oldest first; and "recurrent", state_shape.
    """

    def state_layout(self) -> List[StateSequence]:
        """The sequences of the batch, in order of first appearance: their tokens and their rows.

        Row i of state_get() is sequence i of this list. Padding tokens belong to none.
        Raises BadState (no pass).
        """
        table = np.empty((self._shape.max_batch, 6), dtype=np.int32)
        order = np.empty(self._shape.max_batch, dtype=np.int32)
        count = _capi.kvc_state_layout(self._handle, table, order)
        return [
            StateSequence(
                sequence, order[token : token + n_tokens], slice(row, row + n_rows), read_slot
            )
            for sequence, n_tokens, token, row, n_rows, read_slot in table[:count].tolist()
        ]

    @overload
    def state_get(self, layer: int, part: Part, into: Into, *, dtype: Dtype = ...) -> Into: ...
    @overload
    def state_get(
        self, layer: int, part: Part, into: None = ..., *, dtype: Dtype = ...
    ) -> npt.NDArray[Stored]: ...
    def state_get(
        self, layer: int, part: Part, into: Optional[Array] = None, *, dtype: Dtype = None
    ) -> Array:
        """Copies the states that the batch's sequences had before the pass, whatever was put since.
        A new sequence has zeros.

        part   "conv" or "recurrent"
        into   [n_sequences, …], written; any dimensions with as many elements as the part; None: a
               new NumPy array [n_sequences, conv_channels, conv_dim] or [n_sequences, *state_shape]
        dtype  element type of a new array (None: the storage type) and of uint16 arrays

        Returns into. Raises BadState (no pass), InvalidArgument (the cache lacks the part),
        InvalidRecurrentShape, ShapeError, DtypeError.
        """
        code = _part(part)
        if into is None:
            proposed = _capi.kvc_state_shape(self._handle, layer, code)
            into = self._new_states(layer, part, proposed, 1, dtype)
        _capi.kvc_state_get(self._handle, layer, code, self._typed(layer, part, into, dtype))
        return into

    def state_put(self, layer: int, part: Part, states: Array, *, dtype: Dtype = None) -> None:
        """Stores the states that the tokens of the batch left, converted to the storage type.

        states  [n_rows, …] with any dimensions that have as many elements as the part. A sequence
                with n tokens in the pass has a row for each if n <= draft_states + 1, else one for
                its last; rows lie sequence by sequence, as state_layout() says
        dtype   element type of uint16 arrays ("bf16" or "f16")

        A second put replaces the first. A part that was not put stays as it was.
        Raises what state_get() raises.
        """
        _capi.kvc_state_put(self._handle, layer, _part(part), with_dtype(states, dtype))

    def state_conv(self, layer: int, x: Array, *, dtype: Dtype = None) -> None:
        """state_put() of the convolution part, made from the inputs of the convolution: each row is
        the last conv_dim columns of the state from before the pass followed by the inputs of the
        sequence's tokens up to the row's.

        x      [n_tokens, conv_channels], in the order of the batch
        dtype  element type of a uint16 array ("bf16" or "f16")

        Raises BadState (no pass), InvalidArgument, ShapeError, DtypeError.
        """
        _capi.kvc_state_conv(self._handle, layer, with_dtype(x, dtype))

    def state_view(self, layer: int, part: Part) -> View:
        """A view of all slots of a part, [n_slots, conv_channels, conv_dim] or [n_slots,
        *state_shape] in the storage type, for kernels that work in place.

        Read the slots that state_layout() names, write those of state_slots(), then call
        state_done(). Write to no other slot: it holds the state of a sequence or a checkpoint. The
        view is valid until the pass ends, as those of get().

        Raises BadState (no pass), InvalidArgument (the cache lacks the part).
        """
        address, shape, strides, code = _capi.kvc_state_view(self._handle, layer, _part(part))
        if part == "recurrent":
            dims = self._owner_of(layer)._shape.state_shape
            itemsize = strides[-1]
            products = list(itertools.accumulate(reversed(dims[1:]), initial=itemsize, func=_times))
            shape, strides = (shape[0], *dims), (strides[0], *reversed(products))
        description: Description = (address, shape, strides, code)
        return View(self._lender_of(layer), description, "state_view", writable=True)

    def state_slots(self) -> npt.NDArray[np.int32]:
        """The slot of each row, the same in every layer, for state_view(). It holds anything before
        it is written, and is no sequence's read_slot. Raises BadState (no pass)."""
        slots = np.empty(self._shape.max_batch, dtype=np.int32)
        return slots[: _capi.kvc_state_slots(self._handle, slots)]

    def state_done(self, layer: int, part: Part) -> None:
        """Says that all rows of a part were written in place. It counts as state_put().

        Raises BadState (no pass), InvalidArgument (the cache lacks the part).
        """
        _capi.kvc_state_done(self._handle, layer, _part(part))

    @overload
    def state_gather(
        self,
        layer: int,
        part: Part,
        sequence: int,
        at: Optional[int] = ...,
        *,
        into: Into,
        dtype: Dtype = ...,
    ) -> Into: ...
    @overload
    def state_gather(
        self,
        layer: int,
        part: Part,
        sequence: int,
        at: Optional[int] = ...,
        *,
        into: None = ...,
        dtype: Dtype = ...,
    ) -> npt.NDArray[Stored]: ...
    def state_gather(
        self,
        layer: int,
        part: Part,
        sequence: int,
        at: Optional[int] = None,
        *,
        into: Optional[Array] = None,
        dtype: Dtype = None,
    ) -> Array:
        """Copies the state with which a sequence would continue, as if the open pass were committed.

        at     one of its checkpoints, its next, or 0 (zeros); None: its next
        into   written; any dimensions with as many elements as the part; None: a new NumPy array
               [conv_channels, conv_dim] or state_shape
        dtype  element type of a new array (None: the storage type) and of uint16 arrays

        Returns into. Raises NotFound (no state there), InvalidArgument, InvalidRecurrentShape,
        ShapeError, DtypeError.
        """
        code = _part(part)
        if at is None:
            info = _capi.kvc_sequence_info()
            _capi.kvc_sequence_query(self._handle, sequence, info)
            at = info.next
        if into is None:
            proposed = _capi.kvc_state_gather_shape(self._handle, layer, code, sequence, at)
            into = self._new_states(layer, part, proposed, 0, dtype)
        given = self._typed(layer, part, into, dtype)
        _capi.kvc_state_gather(self._handle, layer, code, sequence, at, given)
        return into

    def checkpoint_take(self, sequence: int) -> None:
        """Keeps the state of a sequence as a checkpoint at its next: the sequence can continue there
        for as long as the checkpoint lasts. Copies nothing, but to host memory
        (host_checkpoints=True).

        Takes nothing where the sequence is empty or has one already. A sequence that has as many as
        `checkpoints` loses its lowest. Ends an open pass, as remove() does. Only the end of a pass
        can become a checkpoint: end a pass where one is wanted, for instance before the last token
        of a prompt.

        Raises BadState (the open pass is not fully put), NotSupported (checkpoints=0).
        """
        _capi.kvc_checkpoint_take(self._handle, sequence)
        self._end_pass()

    def checkpoint_list(self, sequence: int) -> List[int]:
        """Where the checkpoints of a sequence continue, ascending. resume() restores one."""
        count = _capi.kvc_checkpoint_list(self._handle, sequence, None)
        while True:
            places = np.empty(count, dtype=np.int32)
            found = _capi.kvc_checkpoint_list(self._handle, sequence, places)
            if found <= count:
                return [int(place) for place in places[:found]]
            count = found

    def _new_states(
        self, layer: int, part: str, proposed: Description, leading: int, dtype: Dtype
    ) -> npt.NDArray[Any]:
        """A new array for states: the leading extents that the library proposes, then the part's."""
        shape = self._owner_of(layer)._shape
        dims = shape.conv_shape if part == "conv" else shape.state_shape
        code = proposed[3] if dtype is None else dtype_code(dtype)
        return np.empty((*proposed[1][:leading], *dims), numpy_dtype(code))

    def _typed(self, layer: int, part: str, array: Array, dtype: Dtype) -> Any:
        """An array that is written. If dtype is None, bare 16-bit values are the storage type."""
        if dtype is not None:
            return with_dtype(array, dtype)
        shape = self._owner_of(layer)._shape
        return array, shape.dtype_conv if part == "conv" else shape.dtype_state


def _part(name: Any) -> int:
    if not isinstance(name, str) or name not in _PARTS:
        raise InvalidArgument(f'part {name!r} is neither "conv" nor "recurrent"')
    return int(_PARTS[name])


def _times(a: int, b: int) -> int:
    return a * b
