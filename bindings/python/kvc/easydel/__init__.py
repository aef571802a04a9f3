"""EasyDeL's nouns over kvc: its caches, attention operators and their settings, with EasyDeL's names,
constructors and attributes. Arrays are those of NumPy, JAX or PyTorch.

    import kvc.easydel as ed

    metadata = ed.TransformerCacheMetaData.create(
        batch_size=2, sequence_length=128, num_hidden_layers=4, pad_token_id=0, num_heads=2, head_dim=64
    )
    cache = ed.TransformerCache.init_cache(None, metadata, None, dtype="f16")
    attention = ed.AttentionRegistry.create("flash_attn2", ed.AttentionMetadata())

    for view in cache.views:  # the layers of the model, for each step
        k, v, mask = view.concatenate_to_cache(q, k, v, None, None, attention_mask, None, causal_mask)
        out = attention(q=q, k=k, v=v, mask=mask, cache_view=view).attention_outputs

What differs from EasyDeL:

- Caches are changed in place. A step takes effect when the next one begins or commit() is called;
  abort() undoes it. `view.replace()` makes a record: a copy.
- What EasyDeL clamps is refused: a row that is full raises kvc.CacheFull, a slot outside the batch
  kvc.InvalidArgument, and nothing is written.
- A query that sees nothing has outputs 0.
- A quantised cache quantises each token once, when it is put.
- What an operator cannot do raises kvc.NotSupported and names it; no argument is ignored. `mesh`,
  `partition_manager`, `partition_axis` and `kv_sharding` may be any object: kvc computes on one device.
- Arrays hold numbers: a function that jax.jit traces has none, so call these outside of it.
- Errors are kvc's: kvc.InvalidArgument, kvc.ShapeError and kvc.NotFound are ValueErrors.
"""

from .abstracts import BaseCache, BaseCacheMetadata, BaseCacheView, BaseRunTimeMetadata
from .attention import AttentionImpl
from .attention_metadata import AttentionMetadata
from .implementations import (
    AutoAttn,
    AutoRegressiveDecodeAttn,
    FlashAttn,
    LightningAttn,
    RingAttn,
    VanillaAttn,
)
from .lightning import LightningCache, LightningCacheView
from .metadata import (
    LightningCacheMetaData,
    LightningMetadata,
    TransformerCacheMetaData,
    TransformerMetadata,
)
from .outputs import AttentionOutput
from .partition import PartitionAxis, PartitionManager, PartitionSpec
from .registry import AttentionRegistry
from .stored import StoredArray
from .transformer import TransformerCache
from .transformer_view import TransformerCacheView

__all__ = [
    "AttentionImpl",
    "AttentionMetadata",
    "AttentionOutput",
    "AttentionRegistry",
    "AutoAttn",
    "AutoRegressiveDecodeAttn",
    "BaseCache",
    "BaseCacheMetadata",
    "BaseCacheView",
    "BaseRunTimeMetadata",
    "FlashAttn",
    "LightningAttn",
    "LightningCache",
    "LightningCacheMetaData",
    "LightningCacheView",
    "LightningMetadata",
    "PartitionAxis",
    "PartitionManager",
    "PartitionSpec",
    "RingAttn",
    "StoredArray",
    "TransformerCache",
    "TransformerCacheMetaData",
    "TransformerCacheView",
    "TransformerMetadata",
    "VanillaAttn",
]
