"""Names of mesh axes for the dimensions of arrays, in plain Python.

kvc computes on one device and moves no array between devices. These classes resolve names as
EasyDeL's do, so that programs which ask for shardings get the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Optional, Sequence, Tuple, Union

from ..errors import InvalidArgument
from .records import Record

AxisName = Union[None, str, Tuple[str, ...]]
"""A mesh axis, several of them, or None: replicated."""

TRAIN = "__train__"
PREFILL = "__prefill__"
AUTOREGRESSIVE = "__autoregressive__"
INSERT = "__insert__"
MODES = (AUTOREGRESSIVE, PREFILL, TRAIN, INSERT)
_GENERATION = (AUTOREGRESSIVE, INSERT)

EMPTY = "EMPTY"
BATCH = "BATCH"
QUERY_LENGTH = "QUERY_LENGTH"
KV_LENGTH = "KV_LENGTH"
HEAD = "HEAD"
KV_HEAD = "KV_HEAD"
HEAD_DIM = "HEAD_DIM"
KV_HEAD_DIM = "KV_HEAD_DIM"
BIAS_HEAD_SEQ = "BIAS_HEAD_SEQ"
BIAS_KV_SEQ = "BIAS_KV_SEQ"


class PartitionSpec(Tuple[Any, ...]):
    """A mesh axis (or a tuple of axes, or None) for each dimension of an array: a tuple."""

    __slots__ = ()

    def __new__(cls, *axes: Any) -> PartitionSpec:
        return super().__new__(cls, axes)

    def __getnewargs__(self) -> Tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return f"PartitionSpec({', '.join(map(repr, self))})"


@dataclass
class PartitionAxis(Record):
    """Mesh axes for the logical dimensions of attention. In the modes autoregressive and insert the
    field with `decode_` counts, and where that is None the other."""

    batch_axis: AxisName = ("fsdp", "dp")
    query_sequence_axis: AxisName = "sp"
    key_sequence_axis: AxisName = "sp"
    head_axis: AxisName = "tp"
    kv_head_axis: AxisName = None
    attention_dim_axis: AxisName = None
    attention_kv_dim_axis: AxisName = None
    bias_head_sequence_axis: AxisName = None
    bias_key_sequence_axis: AxisName = None
    decode_batch_axis: AxisName = ("fsdp", "dp")
    decode_query_sequence_axis: AxisName = None
    decode_key_sequence_axis: AxisName = "sp"
    decode_head_axis: AxisName = "tp"
    decode_kv_head_axis: AxisName = None
    decode_attention_dim_axis: AxisName = None
    decode_attention_kv_dim_axis: AxisName = None

    FIELDS: ClassVar[Dict[str, str]] = {
        BATCH: "batch_axis",
        QUERY_LENGTH: "query_sequence_axis",
        KV_LENGTH: "key_sequence_axis",
        HEAD: "head_axis",
        KV_HEAD: "kv_head_axis",
        HEAD_DIM: "attention_dim_axis",
        KV_HEAD_DIM: "attention_kv_dim_axis",
        BIAS_HEAD_SEQ: "bias_head_sequence_axis",
        BIAS_KV_SEQ: "bias_key_sequence_axis",
    }
    """the field of each logical dimension"""

    def __post_init__(self) -> None:
        for name in self._names():
            if isinstance(getattr(self, name), list):  # as JSON has a tuple
                setattr(self, name, tuple(getattr(self, name)))

    def axis_of(self, name: Optional[str], mode: str) -> AxisName:
        """The mesh axis of a logical dimension ("BATCH", "KV_HEAD" …; None and "EMPTY": none).
        Raises InvalidArgument (an unknown name)."""
        if name is None or name == EMPTY:
            return None
        if name not in self.FIELDS:
            known = ", ".join([*self.FIELDS, EMPTY])
            raise InvalidArgument(f"the axis {name!r} is not one of {known}")
        axis: AxisName = getattr(self, self.FIELDS[name])
        if mode in _GENERATION:
            decode: AxisName = getattr(self, f"decode_{self.FIELDS[name]}", None)
            return axis if decode is None else decode
        return axis


@dataclass
class PartitionManager(Record):
    """Resolves logical dimensions to mesh axes."""

    paxis: PartitionAxis = field(default_factory=PartitionAxis)

    def __post_init__(self) -> None:
        if isinstance(self.paxis, dict):  # as JSON has it
            self.paxis = PartitionAxis.from_dict(self.paxis)

    def resolve(
        self,
        axes: Sequence[Optional[str]],
        mode: Union[str, int] = TRAIN,
        shape: Optional[Sequence[int]] = None,
    ) -> PartitionSpec:
        """The PartitionSpec of an array.

        axes   a logical dimension for each dimension of the array
        mode   "__train__", "__prefill__", "__autoregressive__" or "__insert__"; or the number of a
               dimension of `shape`: autoregressive if it has one element, else train
        shape  of the array; needed with a number

        Raises InvalidArgument (an unknown name or mode, no such dimension).
        """
        if not isinstance(mode, str):
            if shape is None or not -len(shape) <= mode < len(shape):
                raise InvalidArgument(f"mode is dimension {mode}, but shape is {shape}")
            mode = AUTOREGRESSIVE if shape[mode] == 1 else TRAIN
        if mode not in MODES:
            raise InvalidArgument(f"mode {mode!r} is not one of {', '.join(MODES)}")
        return PartitionSpec(*(self.paxis.axis_of(name, mode) for name in axes))


def kept_axes(axis: AxisName, extent: int, mesh: Any) -> AxisName:
    """An axis for a dimension of this extent; None where the mesh lacks it, or where its devices do
    not divide the extent. Without a mesh every axis has one device."""
    if axis is None or mesh is None:
        return axis
    sizes = dict(mesh.shape)
    devices = 1
    for name in (axis,) if isinstance(axis, str) else axis:
        if name not in sizes:
            return None
        devices *= sizes[name]
    return None if extent % devices else axis
