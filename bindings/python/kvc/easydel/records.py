"""Records that become dicts and JSON and come back without loss, arrays included."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
from typing import Any, ClassVar, Dict, List, Tuple, Type, TypeVar, Union

import numpy as np

from .._arrays import FLOATS, dtype_code, numpy_dtype

R = TypeVar("R", bound="Record")

_ARRAY = {"dtype", "shape", "data"}  # the keys of an array
_ML_TYPES = (*FLOATS, "f8_e4m3", "f8_e5m2")


class Record:
    """to_dict, to_json, from_dict, from_json and replace of a dataclass.

    Arrays are written as {"dtype", "shape", "data"}, data in base64, tuples as lists, and records
    within the record as dicts. Fields named in `_left_out` hold objects of other libraries, and are
    written as null.
    """

    _left_out: ClassVar[Tuple[str, ...]] = ()

    @classmethod
    def _names(cls) -> List[str]:
        """The fields of the record."""
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def to_dict(self) -> Dict[str, Any]:
        """The fields as values of JSON. Raises TypeError for a value that is none and no array."""
        return {
            name: None if name in self._left_out else plain(name, getattr(self, name))
            for name in self._names()
        }

    def to_json(self, **kwargs: Any) -> str:
        """The fields as a JSON object; keyword arguments are those of json.dumps()."""
        return json.dumps(self.to_dict(), **kwargs)

    @classmethod
    def from_dict(cls: Type[R], data: Dict[str, Any]) -> R:
        """The record of a dict. A missing field has its default (TypeError if it has none), a field of
        another name is ignored. Nothing is checked."""
        return cls(**{name: restored(data[name]) for name in cls._names() if name in data})

    @classmethod
    def from_json(cls: Type[R], json_str: Union[str, bytes]) -> R:
        """from_dict() of a JSON object."""
        return cls.from_dict(json.loads(json_str))

    def replace(self: R, **kwargs: Any) -> R:
        """A shallow copy with some fields replaced; without arguments the same object. Fields that
        were derived from others stay as they are. Raises TypeError (no such field)."""
        if not kwargs:
            return self
        self._check_fields(kwargs)
        changed = copy.copy(self)
        for name, value in kwargs.items():
            setattr(changed, name, value)
        return changed

    @classmethod
    def _check_fields(cls, given: Dict[str, Any]) -> None:
        for name in given:
            if name not in cls._names():
                raise TypeError(
                    f"{cls.__name__} has no field {name!r}: it has {', '.join(cls._names())}"
                )


def is_array(value: Any) -> bool:
    """Whether a value is an array of some library."""
    return any(
        hasattr(value, name) for name in ("__array__", "__array_interface__", "__dlpack__")
    ) and not isinstance(value, (np.generic, Record))


def plain(name: str, value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(name, each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(name, each) for key, each in value.items()}
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_array(value):
        array = np.asarray(value)
        data = base64.b64encode(array.tobytes()).decode("ascii")
        return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}
    raise TypeError(f"{name} is {type(value).__name__}, which is neither a value of JSON nor an array")


def restored(value: Any) -> Any:
    """What plain() made a value of, with arrays again."""
    if isinstance(value, list):
        return [restored(each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == _ARRAY:
        array = np.frombuffer(base64.b64decode(value["data"]), _dtype(value["dtype"]))
        return array.reshape(value["shape"])
    return {key: restored(each) for key, each in value.items()}


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:  # a type of ml_dtypes, which may not be imported yet
        return numpy_dtype(dtype_code(name, "dtype", _ML_TYPES))
