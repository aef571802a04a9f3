"""Sequences: what each holds, and how they share, cut and shift it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from . import kvc_capi as _capi
from ._handles import CacheHandle
from .errors import NotSupported, WindowLost
from .info import SequenceInfo

if TYPE_CHECKING:
    from ._arrays import Integers


class Sequences(CacheHandle):
    """The part of kvc.Cache that works on sequences."""

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
        is_approximate = bool(info.flags & _capi.KVC_SEQUENCE_APPROXIMATE)
        return SequenceInfo(
            info.first, info.next, info.count, info.room, info.lost_below, is_approximate
        )
