"""The view of one layer of a transformer cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type, TypeVar

import numpy as np

from ..errors import InvalidHandle
from . import stored
from .abstracts import BaseCacheView
from .metadata import TransformerCacheMetaData, TransformerMetadata
from .records import Record
from .transformer_steps import TransformerSteps

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._arrays import Array

V = TypeVar("V", bound="TransformerCacheView")


class TransformerCacheView(BaseCacheView, Record):
    """Keys and values of one layer of a batch of rows.

    A view is bound to a layer of a cache (TransformerCache.init_cache and init make those), or it is
    a record of arrays that the constructor and replace() make. A record stands for itself; a cache
    takes it as `cache.views[i] = record` or `TransformerCache(views=[record, …])`.

    key, value      [batch, columns, heads, dim] of the storage type, read-only and without a copy; of
                    a quantised cache float32 copies. Arrays stay readable, but show what the cache
                    stores there later. Assigning to a bound view fills the layer, numbers or codes
                    (a StoredArray), and commits the open step
    index           int32 [batch] where each row continues: padding on its left counts. While a step
                    is open, that of a layer that was put counts its tokens
    starts          int32 [batch] the position below which a row is padding: stored, never seen
    metadata        a TransformerCacheMetaData
    layer_index     number of the layer in the model

    In a ring (see TransformerCache.init_cache) position p lies in column p mod columns, else in column
    p.
    """

    def __init__(
        self,
        key: Any,
        value: Any,
        index: Any,
        starts: Any,
        metadata: TransformerCacheMetaData,
        layer_index: Optional[int] = None,
    ) -> None:
        self._store: Optional[TransformerSteps] = None
        self._layer = 0
        self._record: Dict[str, Any] = dict(key=key, value=value, index=index, starts=starts)
        self.metadata = metadata
        self.layer_index = layer_index

    @classmethod
    def _bound(
        cls: Type[V],
        steps: TransformerSteps,
        layer: int,
        metadata: TransformerCacheMetaData,
        layer_index: Optional[int],
    ) -> V:
        view = cls(None, None, None, None, metadata, layer_index)
        view._store, view._layer = steps, layer
        return view

    @classmethod
    def _names(cls) -> List[str]:
        return ["key", "value", "index", "starts", "metadata", "layer_index"]

    @classmethod
    def init(  # type: ignore[override]
        cls: Type[V],
        mesh: Any,
        dtype: Any,
        metadata: TransformerCacheMetaData,
        quantizer: Any,
        partition_manager: Any,
        starts: Optional[Array] = None,
        layer_index: Optional[int] = None,
        **options: Any,
    ) -> V:
        """A view of an empty cache of one layer: zeros, index 0, starts as given or 0. The arguments are
        those of TransformerCache.init_cache()."""
        steps = TransformerSteps.create(metadata, 1, dtype, quantizer, starts, options)
        return cls._bound(steps, 0, metadata, layer_index)

    @property
    def _bound_steps(self) -> TransformerSteps:
        if self._store is None:
            raise InvalidHandle(
                "this view is a record of arrays: TransformerCache(views=[…]) makes a cache of records"
            )
        return self._store

    # ---- Steps -----------------------------------------------------------------------------------

    def concatenate_to_cache(
        self,
        query: Array,
        key: Array,
        value: Array,
        quantizer: Any,
        cache_metadata: Optional[TransformerMetadata],
        attention_mask: Optional[Array],
        partition_manager: Any,
        causal_mask: Any = None,
        token_type_ids: Optional[Array] = None,
    ) -> Tuple[Any, Any, npt.NDArray[np.bool_]]:
        """Stores keys and values of new tokens in this layer, and returns all of its columns with what
        the new tokens see.

        The first view of a step opens it in all layers; the views of the other layers, with the same
        arguments, take part in it. A view that took part already, or other arguments, begin the next
        step, which commits the open one. commit() and abort() of the cache end it, too.

        query            [batch, q_len, n_q_heads, dim]: its length alone counts
        key, value       [batch, q_len, heads, dim], float32, float16 or bfloat16
        quantizer        None, or that of the cache
        cache_metadata   a TransformerMetadata, or None
        attention_mask   [batch, n] or [batch, 1, q_len, n] of bool, integers, or floats 0 and 1: 0
                         hides a column of the cache. n reaches at least as far as each row will;
                         columns beyond it are not hidden. None: nothing is hidden. In a ring
                         kvc.NotSupported
        causal_mask      True, or lower triangular: a token sees itself and what is before it. None:
                         also what is after it. Any other [1 or batch, 1, R, C]: row index + i is what
                         token i may see; in a ring kvc.NotSupported
        token_type_ids   [batch, q_len], 0: none. New tokens of a row with the same type see each other,
                         whatever their order and distance
        partition_manager  of no effect

        Returns (key_cache, value_cache, mask): as the properties key and value, with the new tokens;
        bool [batch, 1, q_len, columns], read-only. Of a quantised cache, keys and values are float32
        copies, in which columns that no token sees are zeros.

        Raises kvc.CacheFull (names the row; no row has changed), kvc.BadState (some layer of the open
        step was not put), kvc.ShapeError, kvc.DtypeError, kvc.InvalidArgument, kvc.NotSupported. A
        view that raises has put nothing. Only rows that `index` of cache_metadata has set back stay so.
        """
        steps = self._bound_steps
        stored.check_quantizer(quantizer, steps.settings)
        steps.put_step(
            self._layer,
            query,
            key,
            value,
            cache_metadata or TransformerMetadata(),
            attention_mask,
            causal_mask,
            token_type_ids,
        )
        _, mask = steps.allowed_of(self._layer)
        if steps.settings.is_quantised:
            k, v = steps.cache.get_copy(self._layer)
        else:
            k, v = self.key, self.value
        return k, v, mask

    def attention_bias(self) -> Any:
        """What the tokens of the open step see, as a new array [batch, 1, q_len, columns]: float32, 0
        where a token sees a column and minus infinity elsewhere; bool if create_attention_bias of the
        metadata is False.

        Raises kvc.BadState (the layer has no open step).
        """
        _, mask = self._bound_steps.allowed_of(self._layer)
        if not self.metadata.create_attention_bias:
            return mask.copy()
        return np.where(mask, np.float32(0), np.float32(-np.inf))

    # ---- Contents --------------------------------------------------------------------------------

    @property
    def key(self) -> Any:
        """[batch, columns, key_heads, key_dim]."""
        return self._part("key", 0)

    @key.setter
    def key(self, key: Any) -> None:
        self._assign("key", key)

    @property
    def value(self) -> Any:
        """[batch, columns, value_heads, value_dim]."""
        return self._part("value", 1)

    @value.setter
    def value(self, value: Any) -> None:
        self._assign("value", value)

    def _part(self, name: str, side: int) -> Any:
        if self._store is None:
            return self._record[name]
        return np.asarray(self._stored(self._store, side))

    def _stored(self, steps: TransformerSteps, side: int) -> Any:
        return stored.stored_part(steps.cache, self._layer, steps.settings, side)

    def _assign(self, name: str, array: Any) -> None:
        if self._store is None:
            self._record[name] = array
            return
        self._store.settle()
        stored.fill(self._store.cache, self._layer, **{"key": None, "value": None, name: array})

    @property
    def index(self) -> Any:
        """int32 [batch], where rows continue."""
        return self._record["index"] if self._store is None else self._store.index_of(self._layer)

    @property
    def starts(self) -> Any:
        """int32 [batch], below which rows are padding."""
        return self._record["starts"] if self._store is None else self._store.cache.rows().starts

    @property
    def is_empty(self) -> bool:
        """Whether there is no storage behind the view: it is a record without a key."""
        return self._store is None and self._record["key"] is None

    # ---- Records ---------------------------------------------------------------------------------

    def _detached(self: V) -> V:
        """A record of copies; of a quantised cache key and value are StoredArrays."""
        if self._store is None:
            return self
        key, value = (stored.copied(self._stored(self._store, side)) for side in (0, 1))
        return type(self)(key, value, self.index, self.starts, self.metadata, self.layer_index)

    def replace(self: V, **kwargs: Any) -> V:
        """A record of copies of what the view holds, with some fields replaced. Of a record without
        arguments the same object. Of a quantised cache key and value are StoredArrays."""
        self._check_fields(kwargs)
        if self._store is None and not kwargs:
            return self
        fields = {name: getattr(self._detached(), name) for name in self._names()}
        return type(self)(**{**fields, **kwargs})

    def to_dict(self) -> Dict[str, Any]:
        """The fields of the record as values of JSON, arrays without loss."""
        return Record.to_dict(self._detached())

    @classmethod
    def from_dict(cls: Type[V], data: Dict[str, Any]) -> V:
        """The record of a dict."""
        view = super().from_dict(data)
        if isinstance(view.metadata, dict):
            view.metadata = TransformerCacheMetaData.from_dict(view.metadata)
        for name in ("key", "value"):
            if isinstance(view._record[name], dict):
                view._record[name] = stored.StoredArray(**view._record[name])
        return view

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={self._shape_of(name)}" for name in ("key", "value"))
        return f"{type(self).__name__}({shapes}, layer_index={self.layer_index})"

    def _shape_of(self, name: str) -> Optional[Tuple[int, ...]]:
        if self._store is None:
            part = self._record[name]
            return None if part is None else tuple(np.shape(part))
        metadata = self._store.metadata
        heads, dim = metadata.key_heads, metadata.key_dim
        if name == "value":
            heads, dim = metadata.value_heads, metadata.value_dim
        columns = self._store.columns
        return (metadata.batch_size, columns, heads, dim)  # type: ignore[return-value]
