"""The tokens of a batch: what callers give as lists, and the flags of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Optional

import numpy as np

from . import kvc_capi as _capi
from .errors import InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Integers


def listed(values: Iterable[int]) -> Any:
    """The same, with a length. What is no list either is refused where it is read."""
    if hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        return values
    return list(values)


def token_flags(
    positions: Integers,
    sees_later: Optional[Iterable[int]],
    types: Optional[Integers],
    carries_input: Optional[Iterable[int]],
) -> Optional[npt.NDArray[np.int32]]:
    """Flags of a batch's tokens; None if there are none."""
    if sees_later is None and types is None and carries_input is None:
        return None
    count = len(positions)
    flags = np.zeros(count, dtype=np.uint32)
    if types is not None:
        given = _integers("types", types)
        if len(given) != count:
            raise InvalidArgument(f"types has {len(given)} elements, positions has {count}")
        wrong = given[(given < 0) | (given > 0xFFFF)]
        if wrong.size:
            raise InvalidArgument(f"types has the element {wrong[0]}; a type is 0 (none) to 65535")
        flags |= given.astype(np.uint32) << np.uint32(_capi.KVC_TOKEN_TYPE_SHIFT)
    for name, tokens, flag in (
        ("sees_later", sees_later, _capi.KVC_TOKEN_SEES_LATER),
        ("carries_input", carries_input, _capi.KVC_TOKEN_ENCODER_INPUT),
    ):
        if tokens is None:
            continue
        indexes = _integers(name, tokens)
        outside = indexes[(indexes < 0) | (indexes >= count)]
        if outside.size:
            raise InvalidArgument(f"{name} names token {outside[0]} of a batch of {count}")
        flags[indexes.astype(np.intp)] |= np.uint32(flag)
    return flags.view(np.int32)


def _integers(name: str, values: Iterable[int]) -> npt.NDArray[Any]:
    array = np.asarray(listed(values))
    if array.ndim != 1:
        raise TypeError(f"{name} must be a list or array of integers, not {values!r}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    return array
