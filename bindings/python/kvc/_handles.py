"""Filling descriptors in and destroying handles."""

from __future__ import annotations

import operator
from typing import Any, Callable

from .errors import Error, InvalidArgument


def set_integers(desc: Any, **values: Any) -> None:
    """Sets fields of a descriptor. Raises an error that names a value which is not an integer or
    does not fit its field."""
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
    """For finalizers. In a forked child the handle is invalid, and that error means nothing."""
    try:
        destroy(handle)
    except Error:
        pass
