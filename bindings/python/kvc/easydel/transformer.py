"""The transformer cache: a batch of rows in all layers of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Type, TypeVar

import numpy as np

from .. import Cache
from ..errors import InvalidArgument, InvalidHandle
from . import stored
from .layered_cache import LayeredCache
from .metadata import TransformerCacheMetaData
from .transformer_steps import TransformerSteps
from .transformer_view import TransformerCacheView
from .views import Views

if TYPE_CHECKING:
    from .._arrays import Array

C = TypeVar("C", bound="TransformerCache")


class TransformerCache(LayeredCache):
    """Keys and values of a batch of rows in all layers of a model.

    views    list of views, one for each layer, or None where a layer has no storage. Bound views of
             all layers of one cache share it; any others are copied into a new cache, and must agree
             on metadata, index and starts
    options  keywords of init_cache(), for the new cache

    `views` is the list of bound views, and `cache[i]` that of layer i. `cache[i] = record` fills the
    layer; the record's index and starts must be the cache's, or None.

    A cache is changed in place: insert, insert_index and insert_starts return the cache itself.
    They, and assigning to layers, commit the open step; if some layer of it was not put they raise
    kvc.BadState.

    Raises kvc.InvalidArgument, kvc.ShapeError, kvc.DtypeError.
    """

    views: Views[TransformerCacheView]
    _view = TransformerCacheView
    _store: Optional[TransformerSteps]

    # ---- Making ----------------------------------------------------------------------------------

    @classmethod
    def init_cache(
        cls: Type[C],
        mesh: Any,
        metadata: TransformerCacheMetaData,
        partition_manager: Any,
        dtype: Any = None,
        starts: Optional[Array] = None,
        quantizer: Any = None,
        **options: Any,
    ) -> C:
        """A cache of metadata.num_hidden_layers layers: zeros, index 0.

        mesh, partition_manager  of no effect
        dtype        of keys and values, any of kvc.Cache but f8; None: bf16. A quantizer takes its place
        starts       [batch]; None: 0
        quantizer    None or "none": stores numbers; "8bit": int8, a scale for each vector; "nf4": 4 bits,
                     a scale for each block. Or an object with quantization_method (one of these, or a
                     member of an enum with such a value) and block_size

        Keywords:

        device       a kvc.Device; None: the CPU device that such caches share
        max_batch    tokens of a step at most, of all rows together; None: batch_size *
                     sequence_length, so that a step may be as long as a row. Its room costs address
                     space until it is used. A ring has a spare column for each token that a row may
                     have in a step
        max_q_heads  query heads that attention may have; 0: 16 * key_heads
        reach        a token sees itself and `reach` positions before it; None: all
        ring         a row goes on past sequence_length and keeps its last sequence_length positions
        rotate       of "nf4" and "8bit": store vectors rotated by a Hadamard matrix: "k", "v" or True
        interleaved  K and V of a token lie side by side, as one unified tensor: numbers alone

        Raises kvc.InvalidArgument (also what create() of the metadata refuses), kvc.DtypeError,
        kvc.OutOfMemory.
        """
        n_layers = metadata.num_hidden_layers
        steps = TransformerSteps.create(metadata, n_layers, dtype, quantizer, starts, options)
        return cls._of_store(steps, metadata)

    @property
    def kvc_cache(self) -> Cache:
        """The kvc.Cache of kind "transformer" that holds the rows: for what this class has no name
        for, such as bind_attention() or digest()."""
        return self._storage.cache

    @property
    def _storage(self) -> TransformerSteps:
        if self._store is None:
            raise InvalidHandle("the cache is empty: init_cache() makes one with storage")
        return self._store

    # ---- Steps -----------------------------------------------------------------------------------

    def commit(self) -> None:
        """Keeps the open step. Layers that were not put hold zeros. Raises kvc.BadState (no step)."""
        self._storage.cache.commit()

    def abort(self) -> None:
        """Discards the open step: the cache is as it was before. Raises kvc.BadState (no step)."""
        self._storage.cache.abort()

    # ---- Rows ------------------------------------------------------------------------------------

    def insert(
        self: C,
        other: TransformerCache,
        slot: int,
        quantizer: Any = None,
        partition_manager: Any = None,
    ) -> C:
        """Puts all rows of another cache in the place of rows [slot, slot + rows of other): what they
        hold, byte for byte, index and starts, in all layers. What these rows held is gone. Commits the
        open step of both caches.

        quantizer  None, or that of the cache

        Returns the cache. Raises kvc.InvalidArgument (rows that do not exist; caches that store
        differently), kvc.CacheFull, kvc.BadState.
        """
        steps = self._storage
        stored.check_quantizer(quantizer, steps.settings)
        if not isinstance(other, TransformerCache):
            raise TypeError(f"other must be a TransformerCache, not {type(other).__name__}")
        steps.settle()
        if other is not self:
            other._storage.settle()
        steps.cache.insert(other._storage.cache, slot)
        return self

    def insert_index(self: C, index: Any, slot: int, partition_manager: Any = None) -> C:
        """Sets rows back: rows [slot, slot + n) then continue at index, in all layers.

        index  an integer, or n of them of any shape. At most where the row continues. So a prefill with
               padding on its right ends: the row goes back to its true length

        Returns the cache. Raises kvc.InvalidArgument, kvc.WindowLost (of a ring), kvc.BadState.
        """
        return self._set(slot, index=index)

    def insert_starts(self: C, starts: Any, slot: int, partition_manager: Any = None) -> C:
        """Sets starts of rows [slot, slot + n), in all layers.

        starts  an integer, or n of them of any shape, 0 to sequence_length

        Returns the cache. Raises kvc.InvalidArgument, kvc.BadState.
        """
        return self._set(slot, starts=starts)

    def _set(self: C, slot: int, **values: Any) -> C:
        steps = self._storage
        rows = {name: np.asarray(value).reshape(-1) for name, value in values.items()}
        steps.settle()
        steps.cache.rows_set(**rows, begin=slot)
        return self

    def _assign(self, index: int, view: Optional[TransformerCacheView], record: Any) -> None:
        """Fills a layer from a record, or from a view of another layer."""
        if view is None or view._store is None:
            raise InvalidHandle(
                f"layer {index} has no storage: init_cache(), from_pure() and "
                "TransformerCache(views=[…]) make layers with storage"
            )
        if not isinstance(record, TransformerCacheView):
            raise TypeError(
                f"views[{index}] must be a TransformerCacheView, not {type(record).__name__}"
            )
        if record._store is view._store and record._layer == view._layer:
            return
        record = record._detached()
        view._store.settle()
        rows = view._store.cache.rows()
        for name in ("index", "starts"):
            given = getattr(record, name)
            if given is not None and not np.array_equal(given, getattr(rows, name)):
                raise InvalidArgument(
                    f"{name} of the view is {np.asarray(given).tolist()}, that of the cache "
                    f"{getattr(rows, name).tolist()}: insert_{name}() sets it in all layers"
                )
        stored.fill(view._store.cache, view._layer, record.key, record.value)

    # ---- Copies ----------------------------------------------------------------------------------

    def to_pure(self) -> Tuple[List[List[Any]], TransformerCacheMetaData]:
        """Copies of all that the cache holds: ([[key, value, index, starts], …], metadata), a list for
        each layer. Of a quantised cache key and value are (codes, scales)."""
        records = [view._detached() for view in self._bound_views()]
        layers = [
            [*map(_pure, (each.key, each.value)), each.index, each.starts] for each in records
        ]
        return layers, records[-1].metadata

    @classmethod
    def from_pure(
        cls: Type[C],
        pure: Sequence[Sequence[Any]],
        metadata: TransformerCacheMetaData,
        dtype: Any = None,
        **options: Any,
    ) -> C:
        """A cache of what to_pure() returned: bytes, index, starts and layer numbers are the same.

        pure     the list of layers; index and starts must be the same in all
        dtype    the storage type of (codes, scales), such as "int8" or "nf4"; of numbers None
        options  keywords of init_cache(), as the other cache was made with: ring and rotate. Rows of a
                 ring hold their last sequence_length positions

        Raises kvc.InvalidArgument, kvc.ShapeError, kvc.DtypeError.
        """
        records = []
        for i, (key, value, index, starts) in enumerate(pure):
            k, v = _stored(key, dtype, options, "k"), _stored(value, dtype, options, "v")
            records.append(TransformerCacheView(k, v, index, starts, metadata, i))
        return cls(records, **options)

    def _bound_views(self) -> List[TransformerCacheView]:
        self._storage  # raises of an empty cache
        return [view for view in self.views if view is not None]

    def to_dict(self) -> Dict[str, Any]:
        """Views, and how they are stored, as values of JSON, without loss."""
        settings = self._store.settings.to_dict() if self._store is not None else {}
        return {"views": [view and view.to_dict() for view in self.views], "settings": settings}

    @classmethod
    def from_dict(cls: Type[C], data: Dict[str, Any]) -> C:
        """A cache of what to_dict() returned."""
        views = [each and TransformerCacheView.from_dict(each) for each in data["views"]]
        settings = dict(data.get("settings") or {})
        return cls(views, **settings)

    @staticmethod
    def _copied(
        views: Sequence[TransformerCacheView], options: Dict[str, Any]
    ) -> TransformerSteps:
        """A cache of copies of what some views hold."""
        records = [view._detached() for view in views]
        first = records[0]
        for record in records[1:]:
            for name in ("metadata", "index", "starts"):
                one, other = getattr(first, name), getattr(record, name)
                if not (one == other if name == "metadata" else np.array_equal(one, other)):
                    raise InvalidArgument(
                        f"views[{records.index(record)}] has another {name} than views[0]"
                    )
        if first.key is None:
            raise InvalidArgument("the views have no keys and values: pass records that have")
        told = {**stored.settings_of(first.key, first.value), **options}
        origin = views[0]._store
        if origin is not None:
            told = {**origin.settings.to_dict(), "max_batch": None, **told}
        layers = [(each.key, each.value) for each in records]
        return TransformerSteps.restored(first.metadata, layers, first.index, first.starts, told)


def _pure(part: Any) -> Any:
    return (part.codes, part.scales) if isinstance(part, stored.StoredArray) else part


def _stored(part: Any, dtype: Any, options: Dict[str, Any], side: str) -> Any:
    """Codes and scales of to_pure() as a StoredArray."""
    if not isinstance(part, tuple):
        return part
    if dtype is None:
        raise InvalidArgument("pure holds codes and scales: pass their storage type as dtype")
    codes, scales = part
    rotate = options.get("rotate", False)
    block = codes.shape[-1] * 2 // scales.shape[-1] if dtype == "nf4" else 0
    return stored.StoredArray(codes, scales, dtype, block, rotate is True or rotate == side)
