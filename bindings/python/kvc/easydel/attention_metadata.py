"""Settings of attention operators, and the shardings of their arrays."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, FrozenSet, List, Optional, Tuple, Type, TypeVar, Union

import numpy as np

from .._arrays import FLOATS, dtype_code, dtype_name
from ..errors import DtypeError, InvalidArgument
from . import partition
from .partition import PartitionAxis, PartitionManager, PartitionSpec
from .records import Record

M = TypeVar("M", bound="AttentionMetadata")

BLOCKS = ("blocksize_q", "blocksize_k", "blocksize_b")

# What each field is without a value, and the attribute of base_config that it is taken from.
_FIELDS: Dict[str, Tuple[Any, Optional[str]]] = {
    "runtime_dtype": ("f32", "attn_dtype"),
    "runtime_softmax_dtype": (None, "attn_softmax_dtype"),
    "sequence_axis_name": ("sp", None),
    "mesh": (None, "mesh"),
    "platform": ("kvc", "platform"),
    "backend": (None, "backend"),
    "partition_axis": (None, "partition_axis"),
    "partition_manager": (None, "partition_manager"),
    "base_config": (None, None),
    "scan_ring_attention": (True, "scan_ring_attention"),
    "softmax_scale": (None, None),
    "dropout_prob": (0.0, None),
    "blocksize_q": (0, "blocksize_q"),
    "blocksize_k": (0, "blocksize_k"),
    "blocksize_b": (0, "blocksize_b"),
}


class AttentionMetadata(Record):
    """Settings of an attention operator. A field that is not given (or is `...`) is taken from
    base_config where that has it, else it has its default.

    runtime_dtype          "f32", "f16", "bf16" or NumPy's: the least exact type that q, k, v and
                           weights may be rounded to before they are multiplied. A floor: kvc rounds
                           where many rows meet the same keys and the processor has AMX, which is faster;
                           elsewhere it computes in f32. Default "f32"
    runtime_softmax_dtype  likewise for scores, exponentials and sums; "f64" (VanillaAttn) computes
                           them in double. None: f32
    softmax_scale          None: 1 / sqrt(head_dim)
    dropout_prob           0 or more, below 1: of calls with deterministic=False. Default 0
    blocksize_q            query rows that read the keys together, at most; 0: the operator's own.
                           Blocks change bits, never which keys count, and need not divide lengths
    blocksize_k            keys that are read at a time, at most; 0: the operator's own
    blocksize_b            rows of the batch that are read together: 0 or 1, because no operator of kvc
                           has larger ones
    scan_ring_attention    RingAttn: its stretches one after the other (True) or side by side on
                           several threads; same bits
    backend                "cpu", "gpu" (or "cuda"), "tpu", None: that of the device. Decides which
                           forward_… of an AttentionImpl runs
    platform               kept, and of no effect: the build of kvc decides. Default "kvc"
    base_config            any object with attributes: attn_dtype, attn_softmax_dtype, mesh, platform,
                           backend, partition_axis, partition_manager, scan_ring_attention,
                           blocksize_q, blocksize_k and blocksize_b are looked for. Blocks that come
                           from it are for the operators that have blocks of such a size
    sequence_axis_name, mesh, partition_axis, partition_manager
                           kept, for get_shardings() and create_stable_sharding() alone. Defaults "sp",
                           None, PartitionAxis(), PartitionManager(partition_axis)

    Raises kvc.InvalidArgument (a ValueError), kvc.DtypeError.
    """

    _left_out: ClassVar[Tuple[str, ...]] = ("mesh", "base_config")

    runtime_dtype: Any
    runtime_softmax_dtype: Any
    sequence_axis_name: str
    mesh: Any
    platform: Any
    backend: Any
    partition_axis: Any
    partition_manager: Any
    base_config: Any
    scan_ring_attention: bool
    softmax_scale: Optional[float]
    dropout_prob: float
    blocksize_q: int
    blocksize_k: int
    blocksize_b: int

    def __init__(
        self,
        runtime_dtype: Any = ...,
        runtime_softmax_dtype: Any = ...,
        sequence_axis_name: Any = ...,
        mesh: Any = ...,
        platform: Any = ...,
        backend: Any = ...,
        partition_axis: Any = ...,
        partition_manager: Any = ...,
        base_config: Any = None,
        scan_ring_attention: Any = ...,
        softmax_scale: Any = ...,
        dropout_prob: Any = ...,
        blocksize_q: Any = ...,
        blocksize_k: Any = ...,
        blocksize_b: Any = ...,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        for name, value in given.items():
            if value is not ...:
                setattr(self, name, value)
        self.config_blocks: FrozenSet[str] = frozenset(
            name for name in BLOCKS if given[name] is ... and base_config is not None
        )
        """blocks that were not given, but are base_config's"""
        for name, (default, pickup) in _FIELDS.items():
            self.set_attrs_carefully(name, default, pickup, use_base_config=pickup is not None)
        if self.partition_axis is None:
            self.partition_axis = PartitionAxis()
        if self.partition_manager is None:
            self.partition_manager = PartitionManager(self.partition_axis)
        self._check()

    def _check(self) -> None:
        dtype_code(self.runtime_dtype, "runtime_dtype")
        softmax_dtype(self.runtime_softmax_dtype)
        if not 0 <= self.dropout_prob < 1:
            raise InvalidArgument(
                f"dropout_prob is {self.dropout_prob}; it must be 0 or more and below 1"
            )

    @classmethod
    def _names(cls) -> List[str]:
        return list(_FIELDS)

    def __repr__(self) -> str:
        shown = [name for name in _FIELDS if getattr(self, name) != _FIELDS[name][0]]
        return f"AttentionMetadata({', '.join(f'{each}={getattr(self, each)!r}' for each in shown)})"

    @classmethod
    def from_config(
        cls: Type[M], config: Any, softmax_scale: Optional[float], dropout_prob: float = 0.0
    ) -> M:
        """The settings of a model's configuration: any object, of which the attributes named at
        `base_config` are read where it has them, and sequence_axis_name."""
        return cls(
            sequence_axis_name=getattr(config, "sequence_axis_name", ...),
            base_config=config,
            softmax_scale=softmax_scale,
            dropout_prob=dropout_prob,
        )

    def set_attrs_carefully(
        self,
        attr_name: str,
        default: Any,
        pickup_name: Optional[str] = None,
        use_base_config: bool = True,
    ) -> None:
        """Sets an attribute, unless it has a value other than `...`.

        default          what it is set to
        pickup_name      attribute of base_config that is taken instead, where base_config is not None
                         and has it; None: attr_name
        use_base_config  False: the default is taken in any case
        """
        if getattr(self, attr_name, ...) is not ...:
            return
        value = default
        if use_base_config and self.base_config is not None:
            value = getattr(self.base_config, pickup_name or attr_name, ...)
        setattr(self, attr_name, default if value is ... else value)

    def get_shardings(
        self, mode: Union[str, int], BTHD: bool = True, qkv_mni_sharding: bool = False
    ) -> Tuple[PartitionSpec, ...]:
        """The PartitionSpecs of (query, key, value, bias, mask, attention output).

        mode              "__train__", "__prefill__", "__autoregressive__" or "__insert__"
        BTHD              True: arrays are [batch, length, heads, dim]; False: [batch, heads, length,
                          dim]
        qkv_mni_sharding  shard key and value over the axes of query heads and their dimension

        Raises kvc.InvalidArgument (an unknown mode).
        """

        def of(*axes: Optional[str]) -> PartitionSpec:
            spec: PartitionSpec = self.partition_manager.resolve(axes, mode)
            return spec

        def layout(length: str, heads: str, dim: str) -> PartitionSpec:
            return of(partition.BATCH, *((length, heads) if BTHD else (heads, length)), dim)

        query = layout(partition.QUERY_LENGTH, partition.HEAD, partition.HEAD_DIM)
        if qkv_mni_sharding:
            key = layout(partition.KV_LENGTH, partition.HEAD, partition.HEAD_DIM)
        else:
            key = layout(partition.KV_LENGTH, partition.KV_HEAD, partition.KV_HEAD_DIM)
        bias = of(
            partition.BATCH,
            partition.BIAS_HEAD_SEQ,
            partition.QUERY_LENGTH,
            partition.BIAS_KV_SEQ,
        )
        mask = of(partition.BATCH, None, partition.QUERY_LENGTH, partition.BIAS_KV_SEQ)
        return query, key, key, bias, mask, query

    def to_dict(self) -> Dict[str, Any]:
        """The fields as values of JSON: types by name; mesh, base_config and partition objects of
        other libraries as None."""
        shown = {name: getattr(self, name) for name in _FIELDS if name not in self._left_out}
        shown["runtime_dtype"] = dtype_name(dtype_code(self.runtime_dtype))
        shown["runtime_softmax_dtype"] = softmax_dtype(self.runtime_softmax_dtype)
        for name in ("backend", "platform"):
            shown[name] = _value_of(shown[name])
        for name in ("partition_axis", "partition_manager"):
            shown[name] = shown[name].to_dict() if isinstance(shown[name], Record) else None
        return {name: shown.get(name) for name in _FIELDS}

    @classmethod
    def from_dict(cls: Type[M], data: Dict[str, Any]) -> M:
        """The settings of a dict. Fields that are missing are resolved as in the constructor."""
        given = {name: data[name] for name in _FIELDS if name in data}
        for name, kind in (("partition_axis", PartitionAxis), ("partition_manager", PartitionManager)):
            if isinstance(given.get(name), dict):
                given[name] = kind.from_dict(given[name])
        return cls(**given)

    def replace(self: M, **kwargs: Any) -> M:
        """A copy with some fields replaced and checked; without arguments the same object."""
        changed = super().replace(**kwargs)
        changed.config_blocks = self.config_blocks - set(kwargs)
        changed._check()
        return changed

    @property
    def backend_name(self) -> Optional[str]:
        """The backend as one of "cpu", "gpu" and "tpu", or as it was given; None: that of the device."""
        name = _value_of(self.backend)
        name = name.lower() if isinstance(name, str) else name
        return "gpu" if name == "cuda" else name


def softmax_dtype(dtype: Any) -> Optional[str]:
    """The name of a type of the softmax; None: f32."""
    if dtype is None:
        return None
    try:
        if dtype == "f64" or np.dtype(dtype) == np.float64:
            return "f64"
    except TypeError:  # a name of kvc's
        pass
    try:
        return dtype_name(dtype_code(dtype, "runtime_softmax_dtype"))
    except DtypeError:
        names = ", ".join([*FLOATS, "f64"])
        raise DtypeError(f"runtime_softmax_dtype {dtype!r} is not one of {names}") from None


def _value_of(member: Any) -> Any:
    """Of a member of an enum its value."""
    return getattr(member, "value", member)
