"""Sizes of transformer and lightning caches, and options of their steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Tuple, Union

from .. import Metadata, padding
from .abstracts import BaseCacheMetadata, BaseRunTimeMetadata

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .._arrays import Array


@dataclass
class TransformerCacheMetaData(BaseCacheMetadata):
    """Sizes of a TransformerCache. The constructor checks nothing; create() does, and derives."""

    batch_size: int
    """rows of the cache"""
    sequence_length: int
    """columns of a row: the positions that it may hold"""
    num_hidden_layers: int
    pad_token_id: int
    """what padding() takes for padding"""
    num_heads: Optional[int]
    """KV heads: key_heads and value_heads, where they are not given"""
    head_dim: Optional[int]
    """key_dim and value_dim, where they are not given"""
    key_heads: Optional[int]
    value_heads: Optional[int]
    """where they differ from key_heads, a cache stores, and its attention raises kvc.NotSupported"""
    key_dim: Optional[int]
    value_dim: Optional[int]
    update_causal_mask: bool
    """False: passes of the cache are not causal by default"""
    create_attention_bias: bool
    """True: TransformerCacheView.attention_bias() returns float32, 0 and minus infinity; False: bool"""

    @classmethod
    def create(
        cls,
        batch_size: int,
        sequence_length: int,
        num_hidden_layers: int,
        pad_token_id: int,
        num_heads: Optional[int] = None,
        head_dim: Optional[int] = None,
        key_heads: Optional[int] = None,
        value_heads: Optional[int] = None,
        key_dim: Optional[int] = None,
        value_dim: Optional[int] = None,
        update_causal_mask: bool = True,
        create_attention_bias: bool = True,
    ) -> TransformerCacheMetaData:
        """Checks the sizes, and fills in key_heads and value_heads from num_heads, key_dim and
        value_dim from head_dim, where they are None or 0.

        Raises kvc.InvalidArgument, a ValueError.
        """
        given = cls(
            batch_size,
            sequence_length,
            num_hidden_layers,
            pad_token_id,
            num_heads,
            head_dim,
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            update_causal_mask,
            create_attention_bias,
        )
        resolved = given.resolved()
        return given.replace(
            key_heads=resolved.key_heads,
            value_heads=resolved.value_heads,
            key_dim=resolved.key_dim,
            value_dim=resolved.value_dim,
        )

    def resolved(self) -> Metadata:
        """The same as kvc.Metadata, checked and completed. Raises kvc.InvalidArgument."""
        return Metadata(kind="transformer", **vars(self)).resolve()

    def padding(
        self, token_ids: npt.ArrayLike
    ) -> Tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Finds the padding at both ends of rows of tokens.

        token_ids  [rows, length]

        Returns (starts, ends), int32 [rows] each: the index of a row's first token that is not
        padding, as `starts` of a cache, and one past that of its last, as `valid` of
        TransformerMetadata. A row of padding alone has its length in both.
        """
        starts, ends = padding(token_ids, self.pad_token_id)
        return starts, ends


@dataclass
class TransformerMetadata(BaseRunTimeMetadata):
    """Options of one step of a TransformerCache."""

    postpadded: bool = False
    """padding is on the right: attention_mask shows, of the new columns, those that count; rows
    advance by as many"""
    index: Union[None, int, Array] = None
    """int or [batch]: rows are set back to it before the step, for good"""
    valid: Optional[Array] = None
    """[batch] tokens of each row that count, the first of the step; None: all"""


@dataclass
class LightningCacheMetaData(BaseCacheMetadata):
    """Sizes of a LightningCache. All are optional: those that are None come from the arrays of the
    first step."""

    _left_out = ("partition_axis",)

    partition_axis: Any
    """kept as it is; written to JSON as null"""
    batch_size: Optional[int]
    num_heads: Optional[int]
    """state heads: key_heads and value_heads, where they are not given"""
    head_dim: Optional[int]
    """key_dim and value_dim, where they are not given"""
    key_heads: Optional[int]
    value_heads: Optional[int]
    """must be key_heads: a state has one number of heads"""
    key_dim: Optional[int]
    value_dim: Optional[int]

    @classmethod
    def create(
        cls,
        partition_axis: Any = None,
        batch_size: Optional[int] = None,
        num_heads: Optional[int] = None,
        head_dim: Optional[int] = None,
        key_heads: Optional[int] = None,
        value_heads: Optional[int] = None,
        key_dim: Optional[int] = None,
        value_dim: Optional[int] = None,
    ) -> LightningCacheMetaData:
        """The same as the constructor: nothing is checked until storage is made."""
        return cls(
            partition_axis,
            batch_size,
            num_heads,
            head_dim,
            key_heads,
            value_heads,
            key_dim,
            value_dim,
        )


@dataclass
class LightningMetadata(BaseRunTimeMetadata):
    """Options of one step of a LightningCache."""

    valid: Optional[Array] = None
    """[batch] tokens of each row that count, the first of the step; None: all. The others are
    padding: they neither add nor let time pass"""
    token_mask: Optional[Array] = None
    """bool [batch, length]: a token that it hides adds nothing to the state while time passes"""
