"""The lightning cache: states of linear attention with decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Type, TypeVar

import numpy as np

from .. import Cache
from ..errors import InvalidArgument, InvalidHandle, NotSupported
from . import records
from .abstracts import BaseCacheView
from .layered_cache import LayeredCache
from .lightning_steps import LightningStore, restored
from .metadata import LightningCacheMetaData, LightningMetadata
from .records import Record
from .views import Views

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._arrays import Array

C = TypeVar("C", bound="LightningCache")
V = TypeVar("V", bound="LightningCacheView")


class LightningCacheView(BaseCacheView, Record):
    """The states of one layer of a batch of rows.

    A view is bound to a layer (LightningCache.init_cache and init make those), or it is a record of an
    array, which the constructor and replace() make.

    key_value    float32 [batch, heads, key_dim, value_dim], a copy: with lambda = exp(-slope), the sum of
                 lambda^(index - 1 - j) k_j^T v_j over the row's tokens j. None: no token was put yet.
                 Assigning to a bound view replaces the states and commits the open step
    metadata     a LightningCacheMetaData
    layer_index  number of the layer in the model
    index        int32 [batch] where each row continues; None: no token was put yet
    """

    def __init__(
        self,
        key_value: Any,
        metadata: LightningCacheMetaData,
        layer_index: Optional[int] = None,
        index: Any = None,
    ) -> None:
        self._store: Optional[LightningStore] = None
        self._layer = 0
        self._record = {"key_value": key_value, "index": index}
        self.metadata = metadata
        self.layer_index = layer_index

    @classmethod
    def _bound(
        cls: Type[V],
        store: LightningStore,
        layer: int,
        metadata: LightningCacheMetaData,
        layer_index: Optional[int],
    ) -> V:
        view = cls(None, metadata, layer_index)
        view._store, view._layer = store, layer
        return view

    @classmethod
    def _names(cls) -> List[str]:
        return ["key_value", "metadata", "layer_index", "index"]

    @classmethod
    def init(
        cls: Type[V],
        metadata: LightningCacheMetaData,
        layer_index: Optional[int] = None,
        **options: Any,
    ) -> V:
        """A view of an empty cache of one layer. Storage is made at the first use, with the sizes of its
        arrays where metadata has none. `options` are the keywords of LightningCache.init_cache()."""
        return cls._bound(LightningStore(1, metadata, options), 0, metadata, layer_index)

    @property
    def _bound_store(self) -> LightningStore:
        if self._store is None:
            raise InvalidHandle(
                "this view is a record of an array: LightningCache(views=[…]) makes a cache of records"
            )
        return self._store

    def concatenate_to_cache(
        self,
        query: Array,
        key: Array,
        value: Array,
        attention_mask: Optional[Array] = None,
        kv_sharding: Any = None,
        quantizer: Any = None,
        causal_mask: Any = None,
        token_type_ids: Optional[Array] = None,
        cache_metadata: Optional[LightningMetadata] = None,
    ) -> Tuple[Any, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Adds new tokens to the states of this layer, and attends. Keys and values themselves are not
        kept: they are summed.

        Views take part in steps as those of a TransformerCache do.

        query           [batch, q_len, n_q_heads, key_dim], n_q_heads a multiple of heads
        key, value      [batch, q_len, heads, key_dim / value_dim]
        attention_mask  a token that it hides adds nothing while time passes. [batch, q_len], or over
                        all positions [batch, n] or [batch, 1, rows, n], of which the last row's new
                        columns count; bool, integers, or floats 0 and 1. None: none is hidden
        causal_mask     None, True, or lower triangular [1 or batch, 1, rows, n]: linear attention is
                        causal by construction
        cache_metadata  a LightningMetadata, or None
        kv_sharding     of no effect
        quantizer, token_type_ids  None: states are float32, and see all that is before them

        Returns (outputs, key_value, mask): float32 [batch, q_len, n_q_heads, value_dim] of the kind of
        query, the states behind the step, and bool [batch, q_len], the tokens that counted.

        Raises kvc.NotSupported, kvc.BadState (some layer of the open step was not put),
        kvc.ShapeError, kvc.DtypeError, kvc.InvalidArgument. A view that raises has put nothing.
        """
        store = self._bound_store
        if not (causal_mask is None or causal_mask is True or np.ndim(causal_mask)):
            raise NotSupported("causal_mask is False: linear attention is causal by construction")
        if token_type_ids is not None:
            raise NotSupported("token_type_ids: linear attention sees no later tokens")
        if getattr(quantizer, "quantization_method", quantizer) is not None:
            raise NotSupported("quantizer: states are float32")
        options = cache_metadata or LightningMetadata()
        outputs, mask = store.put_step(
            self._layer, query, key, value, attention_mask, causal_mask, options
        )
        return outputs, self.key_value, mask

    @property
    def key_value(self) -> Any:
        """float32 [batch, heads, key_dim, value_dim]."""
        if self._store is None:
            return self._record["key_value"]
        steps = self._store.steps
        return None if steps is None else steps.cache.lightning_read(self._layer)

    @key_value.setter
    def key_value(self, states: Any) -> None:
        if self._store is None:
            self._record["key_value"] = states
            return
        if self._store.steps is None:
            raise InvalidHandle("the cache has no storage yet: from_pure() makes one of states")
        self._store.steps.settle()
        self._store.steps.cache.lightning_write(self._layer, states)

    @property
    def index(self) -> Any:
        """int32 [batch], where rows continue."""
        return self._record["index"] if self._store is None else self._store.index_of(self._layer)

    def _detached(self: V) -> V:
        if self._store is None:
            return self
        return type(self)(self.key_value, self.metadata, self.layer_index, self.index)

    def replace(self: V, **kwargs: Any) -> V:
        """A record of a copy of the states, with some fields replaced. Of a record without arguments the
        same object."""
        self._check_fields(kwargs)
        if self._store is None and not kwargs:
            return self
        fields = {name: getattr(self, name) for name in self._names()}
        return type(self)(**{**fields, **kwargs})

    @classmethod
    def from_dict(cls: Type[V], data: Dict[str, Any]) -> V:
        """The record of a dict."""
        view = super().from_dict(data)
        if isinstance(view.metadata, dict):
            view.metadata = LightningCacheMetaData.from_dict(view.metadata)
        return view

    def __repr__(self) -> str:
        states = self.key_value
        shape = None if states is None else tuple(np.shape(states))
        return f"{type(self).__name__}(key_value={shape}, layer_index={self.layer_index})"


class LightningCache(LayeredCache):
    """States of linear attention of a batch of rows in all layers of a model.

    views    list of views, one for each layer, or None where a layer has no storage. Bound views of all
             layers of one cache share it; any others are copied into a new cache
    options  keywords of init_cache(), for the new cache

    A cache is changed in place. Memory does not grow with a row.
    """

    views: Views[LightningCacheView]
    _view = LightningCacheView
    _store: Optional[LightningStore]

    @classmethod
    def init_cache(
        cls: Type[C], num_hidden_layers: int, metadata: LightningCacheMetaData, **options: Any
    ) -> C:
        """A cache of empty rows. Storage is made at the first use, with the sizes of its arrays where
        metadata has none.

        Keywords:

        slopes        how states decay, by exp(-slope) per position: the name of a family of
                      kvc.slopes(), or [heads], or [num_hidden_layers, heads]. Default "alibi"
        scale         of the outputs; None: 1
        checkpoints   states that a row keeps, to continue there again
        draft_tokens  a step of up to draft_tokens + 1 tokens per row can be kept in part: see
                      kvc.Cache.commit_prefix() of `kvc_cache`
        max_batch     tokens of a step at most, of all rows together; None: 2048 per row, or as many as
                      the first step has, if these are more
        device        a kvc.Device; None: the CPU device that such caches share
        """
        return cls._of_store(LightningStore(num_hidden_layers, metadata, options), metadata)

    @property
    def kvc_cache(self) -> Cache:
        """The kvc.Cache of kind "lightning" that holds the states. Raises kvc.InvalidHandle (the cache
        is empty, or its storage is not made yet)."""
        if self._store is None or self._store.steps is None:
            raise InvalidHandle(
                "the cache has no storage: init_cache() makes one at its first step, from_pure() of states"
            )
        return self._store.steps.cache

    def commit(self) -> None:
        """Keeps the open step. Raises kvc.BadState (no step)."""
        self.kvc_cache.commit()

    def abort(self) -> None:
        """Discards the open step: the cache is as it was before. Raises kvc.BadState (no step)."""
        self.kvc_cache.abort()

    def insert(self: C, other: LightningCache, slot: int, quantizer: Any = None) -> C:
        """Puts all rows of another cache in the place of rows [slot, slot + rows of other), in all
        layers: states, index and checkpoints. Commits the open step of both caches.

        quantizer  None

        Returns the cache. Raises kvc.InvalidArgument (rows that do not exist; other heads, dimensions
        or slopes), kvc.BadState, kvc.InvalidHandle (a cache has no storage yet).
        """
        if not isinstance(other, LightningCache):
            raise TypeError(f"other must be a LightningCache, not {type(other).__name__}")
        if quantizer is not None:
            raise NotSupported("quantizer: states are float32")
        for cache in (self, other):
            cache.kvc_cache  # raises where there is none
            cache._store.steps.settle()  # type: ignore[union-attr]
        self.kvc_cache.insert(other.kvc_cache, slot)
        return self

    def _assign(self, index: int, view: Optional[LightningCacheView], record: Any) -> None:
        """Fills a layer from a record, or from a view of another layer."""
        if view is None or view._store is None:
            raise InvalidHandle(f"layer {index} has no storage: LightningCache(views=[…]) makes some")
        if not isinstance(record, LightningCacheView):
            raise TypeError(
                f"views[{index}] must be a LightningCacheView, not {type(record).__name__}"
            )
        if record._store is view._store and record._layer == view._layer:
            return
        if record.index is not None and not np.array_equal(record.index, view.index):
            raise InvalidArgument("index of the view is not that of the cache")
        view.key_value = record.key_value

    def to_pure(self) -> Tuple[List[List[Any]], LightningCacheMetaData]:
        """Copies of all that the cache holds: ([[key_value, index], …], metadata), a list for each
        layer. Checkpoints are not in it."""
        views = [view for view in self.views if view is not None]
        if not views:
            raise InvalidHandle("the cache is empty: init_cache() makes one with storage")
        return [[view.key_value, view.index] for view in views], views[-1].metadata

    @classmethod
    def from_pure(
        cls: Type[C],
        pure: Sequence[Sequence[Any]],
        metadata: LightningCacheMetaData,
        **options: Any,
    ) -> C:
        """A cache of what to_pure() returned: states, index and layer numbers are the same.

        options  keywords of init_cache(), as the other cache was made with
        """
        views = [
            LightningCacheView(key_value, metadata, i, index)
            for i, (key_value, index) in enumerate(pure)
        ]
        return cls(views, **options)

    def to_dict(self) -> Dict[str, Any]:
        """Views and options as values of JSON, without loss."""
        options = dict(self._store.options if self._store is not None else {}, device=None)
        return {
            "views": [view and view.to_dict() for view in self.views],
            "options": records.plain("options", options),
        }

    @classmethod
    def from_dict(cls: Type[C], data: Dict[str, Any]) -> C:
        """A cache of what to_dict() returned."""
        views = [each and LightningCacheView.from_dict(each) for each in data["views"]]
        return cls(views, **records.restored(data.get("options") or {}))

    @staticmethod
    def _copied(views: Sequence[LightningCacheView], options: Dict[str, Any]) -> LightningStore:
        """A store of copies of what some views hold."""
        first = views[0]
        for i, view in enumerate(views):
            if view.metadata != first.metadata:
                raise InvalidArgument(f"views[{i}] has another metadata than views[0]")
            if not np.array_equal(view.index, first.index):
                raise InvalidArgument(f"views[{i}] has another index than views[0]")
        told = {**(first._store.options if first._store else {}), **options}
        return restored(first.metadata, [view.key_value for view in views], first.index, told)
