"""The tokens of a batch: what callers give as lists, and the flags of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Optional, Tuple, Union

import numpy as np

from . import kvc_capi as _capi
from .errors import DtypeError, InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._arrays import Integers


def listed(values: Iterable[int]) -> Any:
    """The same, with a length. What is no list either is refused where it is read."""
    if hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        return values
    return list(values)


def array_of(name: str, values: Any) -> npt.NDArray[Any]:
    """The values as NumPy reads them. NumPy's own message does not say which argument it means."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidArgument(f"{name} is no array: {error}") from None


def token_flags(
    positions: Integers,
    sees_later: Optional[Iterable[int]],
    types: Optional[Integers],
    carries_input: Optional[Iterable[int]],
    masked: Optional[Iterable[int]],
) -> Optional[npt.NDArray[np.int32]]:
    """Flags of a batch's tokens; None if there are none."""
    if sees_later is None and types is None and carries_input is None and masked is None:
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
        ("masked", masked, _capi.KVC_TOKEN_MASKED),
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
    array = array_of(name, listed(values))
    if array.ndim != 1:
        raise TypeError(f"{name} must be a list or array of integers, not {values!r}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    return array


def int32s(name: str, values: Any, shape: Tuple[Union[int, str], ...]) -> npt.NDArray[np.int32]:
    """Integers as a new array, which no other thread writes to; a named extent may be any."""
    array = array_of(name, listed(values))
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    wanted = tuple(n if isinstance(each, str) else each for n, each in zip(array.shape, shape))
    if array.ndim != len(shape) or array.shape != wanted:
        words = ", ".join(str(each) for each in shape)
        raise InvalidArgument(
            f"{name} has shape {array.shape}, not ({words}{',' * (len(shape) == 1)})"
        )
    wrong = array[(array < _INT32.min) | (array > _INT32.max)]
    if wrong.size:
        raise InvalidArgument(f"{name} has the element {wrong[0]}, which is no integer of 32 bits")
    return np.array(array, np.int32, order="C")


_INT32 = np.iinfo(np.int32)


def shown(name: str, mask: Any) -> Any:
    """A mask of bool, or of integers, where 0 hides, as bool."""
    if mask is None:
        return None
    array = array_of(name, mask)
    if array.dtype.kind in "iu":
        return array != 0
    if array.dtype != bool:
        raise DtypeError(
            f"{name} is {array.dtype}; it must hold bool, or integers of which 0 hides"
        )
    return array
