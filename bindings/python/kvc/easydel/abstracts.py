"""What every cache of this package is made of: metadata, views of layers, and a list of views.

Derive from these to make caches of your own that models of EasyDeL's shape can use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Optional, Sequence

from .. import Metadata
from .._handles import CacheHandle
from .records import Record


class BaseCacheMetadata(ABC, Record):
    """Sizes of a cache, as a model describes them."""

    @classmethod
    @abstractmethod
    def create(cls, *args: Any, **kwargs: Any) -> BaseCacheMetadata:
        """Makes metadata. Raises kvc.InvalidArgument (a ValueError) where a check fails."""


class BaseRunTimeMetadata(Record):
    """What is known only when a model runs: options of one step."""


class BaseCacheView(ABC):
    """What one layer holds."""

    metadata: Any
    """the BaseCacheMetadata that the cache was made of"""
    layer_index: Optional[int]
    """number of the layer in the model"""

    @classmethod
    @abstractmethod
    def init(cls, metadata: Any, *args: Any, **kwargs: Any) -> BaseCacheView:
        """Makes the view of an empty layer."""

    @abstractmethod
    def concatenate_to_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Adds new tokens to the layer, and returns what attention needs."""


class BaseCache(ABC):
    """The views of all layers of a model. `cache[i]` is that of layer i, or None."""

    views: Sequence[Optional[BaseCacheView]]
    """one for each layer; None: the layer has no storage"""

    @classmethod
    @abstractmethod
    def init_cache(cls, *args: Any, **kwargs: Any) -> BaseCache:
        """Makes a cache with storage for all layers."""

    @classmethod
    @abstractmethod
    def init_empty(cls, *args: Any, **kwargs: Any) -> BaseCache:
        """Makes a cache whose views are all None."""

    def __getitem__(self, index: int) -> Optional[BaseCacheView]:
        return self.views[index]

    def __setitem__(self, index: int, view: Optional[BaseCacheView]) -> None:
        self.views[index] = view  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.views)

    def __repr__(self) -> str:
        return "\n  ".join([f"{type(self).__name__}(", *map(str, self.views)]) + "\n)"


BaseCacheMetadata.register(Metadata)
BaseCache.register(CacheHandle)
