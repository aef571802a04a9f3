"""EasyDeL's nouns over kvc, with its names, constructors and attributes."""

from .abstracts import BaseCache, BaseCacheMetadata, BaseCacheView, BaseRunTimeMetadata
from .attention_metadata import AttentionMetadata
from .lightning import LightningCache, LightningCacheView
from .metadata import (
    LightningCacheMetaData,
    LightningMetadata,
    TransformerCacheMetaData,
    TransformerMetadata,
)
from .outputs import AttentionOutput
from .partition import PartitionAxis, PartitionManager, PartitionSpec
from .stored import StoredArray
from .transformer import TransformerCache
from .transformer_view import TransformerCacheView

__all__ = [
    "AttentionMetadata",
    "AttentionOutput",
    "BaseCache",
    "BaseCacheMetadata",
    "BaseCacheView",
    "BaseRunTimeMetadata",
    "LightningCache",
    "LightningCacheMetaData",
    "LightningCacheView",
    "LightningMetadata",
    "PartitionAxis",
    "PartitionManager",
    "PartitionSpec",
    "StoredArray",
    "TransformerCache",
    "TransformerCacheMetaData",
    "TransformerCacheView",
    "TransformerMetadata",
]
