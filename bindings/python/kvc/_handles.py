"""Filling descriptors and letting go of handles."""

from __future__ import annotations

import operator
from typing import Any, Callable

from .errors import Error, InvalidArgument


def set_integers(desc: Any, **values: Any) -> None:
    """Sets fields of a descriptor; what is no integer or does not fit is refused by name."""
    for name, value in values.items():
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
        try:
            setattr(desc, name, number)
        except (OverflowError, TypeError):
            raise InvalidArgument(f"{name} {number} does not fit its field") from None


def destroy_quietly(destroy: Callable[[Any], None], handle: Any) -> None:
    """What finalizers call. In a child process the handle is dead already, which is no news."""
    try:
        destroy(handle)
    except Error:
        pass
