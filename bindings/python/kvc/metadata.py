"""Sizes of a cache as models describe them, and padding."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Dict, Literal, Optional, Tuple, Union

import numpy as np

from . import kvc_capi as _capi
from ._batch import int32s
from ._handles import integer, set_integers
from .errors import InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

_KINDS = {"transformer": _capi.KVC_TRANSFORMER, "lightning": _capi.KVC_LIGHTNING}
_FLAGS = {
    "update_causal_mask": _capi.KVC_METADATA_NO_CAUSAL_MASK,
    "create_attention_bias": _capi.KVC_METADATA_NO_ATTENTION_BIAS,
}
_TEXT = 512  # bytes that hold any metadata as JSON


@dataclass
class Metadata:
    """Sizes of a transformer or lightning cache under the names of EasyDeL's TransformerCacheMetaData and
    LightningCacheMetaData. None and 0 are "not given".

    Nothing is checked or derived but by resolve() and arguments():

        metadata = kvc.Metadata(batch_size=8, sequence_length=4096, num_hidden_layers=32, num_heads=8,
                                head_dim=128)
        cache = kvc.Cache(**metadata.arguments(), dtype="bf16", max_batch=8 * 512)
    """

    kind: Literal["transformer", "lightning"] = "transformer"
    batch_size: Optional[int] = None
    """rows: max_sequences"""
    sequence_length: Optional[int] = None
    """capacity; not of a lightning cache"""
    num_hidden_layers: Optional[int] = None
    """n_layers"""
    pad_token_id: int = 0
    """what padding() is given; not of a lightning cache"""
    num_heads: Optional[int] = None
    """KV heads: key_heads and value_heads, where they are not given"""
    head_dim: Optional[int] = None
    """key_dim and value_dim, where they are not given"""
    key_heads: Optional[int] = None
    """n_kv_heads"""
    value_heads: Optional[int] = None
    """heads of V"""
    key_dim: Optional[int] = None
    """head_dim"""
    value_dim: Optional[int] = None
    """head_dim_v"""
    update_causal_mask: bool = True
    """False: tokens also see later ones of their pass; not of a lightning cache"""
    create_attention_bias: bool = True
    """False: mask() makes bool masks instead of float32; not of a lightning cache"""

    def resolve(self) -> Metadata:
        """The same, checked, with key_heads and value_heads from num_heads, key_dim and value_dim from
        head_dim where they were not given.

        Raises InvalidArgument, whose message is the first of these that applies: a field that the kind
        does not have; "batch_size must be positive"; "sequence_length must be positive" (transformer);
        "Either head_dim or both key_dim and value_dim must be specified"; "Either num_heads or both
        key_heads and value_heads must be specified"; "num_hidden_layers must be positive", then the
        same of key_heads, value_heads, key_dim, value_dim.
        """
        native = self._native()
        _capi.kvc_metadata_resolve(native)
        return self._of(native, self.kind)

    def arguments(self) -> Dict[str, Any]:
        """The arguments of kvc.Cache() that these sizes stand for: kind, n_layers, n_kv_heads, head_dim,
        head_dim_v and max_sequences; of a transformer cache also capacity, value_heads, mask_dtype and
        causal. The metadata need not be resolved.

        Raises what resolve() raises; NotSupported (a lightning cache whose key_heads and value_heads
        differ).
        """
        desc = _capi.kvc_cache_desc()
        kind_desc = None
        if self.kind == "transformer":
            kind_desc = _capi.kvc_transformer_desc()
            kind_desc.kind = _capi.KVC_TRANSFORMER
        _capi.kvc_metadata_descriptors(self._native(), desc, kind_desc)
        found = {
            "kind": self.kind,
            "n_layers": desc.n_layers,
            "n_kv_heads": desc.n_kv_heads,
            "head_dim": desc.head_dim_k,
            "head_dim_v": desc.head_dim_v,
            "max_sequences": desc.max_sequences,
        }
        if kind_desc is None:
            return found
        return {
            **found,
            "capacity": desc.capacity,
            "value_heads": kind_desc.value_heads,
            "mask_dtype": "bool" if kind_desc.mask_dtype == _capi.KVC_BOOL else "f32",
            "causal": not kind_desc.flags & _capi.KVC_TRANSFORMER_NOT_CAUSAL,
        }

    def to_json(self) -> str:
        """A JSON object on one line, as json.dumps() writes it: what was not given is null. A lightning
        cache's has a partition_axis too, which is null."""
        return _capi.kvc_metadata_to_json(self._native(), _TEXT)

    @classmethod
    def from_json(
        cls, text: Union[str, bytes], kind: Literal["transformer", "lightning"] = "transformer"
    ) -> Metadata:
        """Reads a JSON object with the fields of to_json(). A field that is missing or null is not given,
        one of another name is ignored. Nothing is checked or derived: that is resolve()'s.

        Raises CorruptData (the text is no JSON object; a field is of another type, or does not fit 32
        bits), InvalidArgument (more than 64 MiB), OutOfMemory.
        """
        native = _capi.kvc_metadata()
        native.kind = _kind(kind)
        _capi.kvc_metadata_from_json(text.encode() if isinstance(text, str) else text, native)
        return cls._of(native, kind)

    def _native(self) -> Any:
        native = _capi.kvc_metadata()
        numbers = {name: getattr(self, name) or 0 for name in _NUMBERS}
        flags = sum(flag for name, flag in _FLAGS.items() if not getattr(self, name))
        set_integers(native, kind=_kind(self.kind), flags=flags, **numbers)
        return native

    @classmethod
    def _of(cls, native: Any, kind: Literal["transformer", "lightning"]) -> Metadata:
        numbers: Dict[str, Any] = {name: getattr(native, name) or None for name in _NUMBERS}
        numbers["pad_token_id"] = native.pad_token_id
        flags = {name: not native.flags & flag for name, flag in _FLAGS.items()}
        return cls(kind, **numbers, **flags)


_NUMBERS = [field.name for field in fields(Metadata) if field.name not in ("kind", *_FLAGS)]


def _kind(kind: Any) -> int:
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidArgument(f"kind {kind!r} is not one of {', '.join(_KINDS)}")
    return int(_KINDS[kind])


def padding(
    token_ids: npt.ArrayLike, pad_token_id: int = 0
) -> Tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Finds the padding at both ends of rows of tokens. Padding between other tokens is none.

    token_ids  integers [n_rows, q_len]

    Returns (starts, ends), each int32 [n_rows]: the index of a row's first token that is not padding, as
    rows_set() takes it, and one past the index of its last one, as begin_rows() takes `valid`. A row of
    padding alone has q_len and q_len. Raises InvalidArgument.
    """
    ids = int32s("token_ids", token_ids, ("n_rows", "q_len"))
    n_rows, q_len = ids.shape
    starts, ends = np.empty(n_rows, np.int32), np.empty(n_rows, np.int32)
    _capi.kvc_padding(n_rows, q_len, ids, integer("pad_token_id", pad_token_id), starts, ends)
    return starts, ends
