"""What transformer and lightning caches have in common: views that share a store."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Dict, List, Optional, Sequence, Type, TypeVar

from .abstracts import BaseCache
from .records import Record
from .views import Views

C = TypeVar("C", bound="LayeredCache")


class LayeredCache(BaseCache, Record):
    """A cache whose views are bound to the layers of one store, which holds them all."""

    views: Views[Any]
    _view: ClassVar[Type[Any]]
    """the class of the views; their `_store` and `_layer` are what they are bound to"""

    def __init__(self, views: Sequence[Optional[Any]], **options: Any) -> None:
        given = list(views)
        bound = [view for view in given if view is not None]
        self._store: Any = None
        if bound:
            self._store = _shared(bound) if not options else None
            if self._store is None:
                self._store = self._copied(bound, options)
                given = self._bind(given)
        self.views = Views(given, self._assign)

    @staticmethod
    @abstractmethod
    def _copied(views: Sequence[Any], options: Dict[str, Any]) -> Any:
        """A store of copies of what some views hold."""

    @abstractmethod
    def _assign(self, index: int, view: Optional[Any], record: Any) -> None:
        """Fills a layer from a record, or from a view of another layer."""

    def _bind(self, records: Sequence[Any]) -> List[Optional[Any]]:
        """Bound views for records of this cache's layers."""
        views: List[Optional[Any]] = []
        layer = 0
        for record in records:
            views.append(
                record
                and self._view._bound(self._store, layer, record.metadata, record.layer_index)
            )
            layer += record is not None
        return views

    @classmethod
    def _of_store(cls: Type[C], store: Any, metadata: Any) -> C:
        """The cache of all layers of a store."""
        layers = range(store.n_layers)
        return cls([cls._view._bound(store, layer, metadata, layer) for layer in layers])

    @classmethod
    def _names(cls) -> List[str]:
        return ["views"]

    @classmethod
    def init_empty(cls: Type[C], num_hidden_layers: int) -> C:
        """A cache without storage: its views are None, and operations raise kvc.InvalidHandle."""
        return cls([None] * num_hidden_layers)

    def replace(self: C, **kwargs: Any) -> C:
        """A cache with other views; without arguments the same object."""
        self._check_fields(kwargs)
        return type(self)(**kwargs) if kwargs else self

    __repr__ = BaseCache.__repr__


def _shared(views: Sequence[Any]) -> Optional[Any]:
    """The store that all of these views are bound to, in the order of its layers; None: there is none."""
    store = views[0]._store
    if store is None or len(views) != store.n_layers:
        return None
    same = all(view._store is store and view._layer == i for i, view in enumerate(views))
    return store if same else None
