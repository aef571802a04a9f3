"""A transformer cache below its views: how it is made, and how a step is planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Tuple

import numpy as np

from .. import Cache, Metadata
from ..errors import NotSupported, ShapeError
from . import stored
from .metadata import TransformerCacheMetaData, TransformerMetadata
from .stored import Settings
from .steps import Step, Steps, causality, shown, tokens_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Int32s = npt.NDArray[np.int32]


class TransformerSteps(Steps):
    """A kvc.Cache of kind "transformer", its metadata and settings."""

    def __init__(self, cache: Cache, metadata: Metadata, settings: Settings) -> None:
        super().__init__(cache)
        self.metadata = metadata
        """resolved"""
        self.settings = settings
        self.n_layers = cache.n_layers
        self.q_max = (settings.max_batch or 0) // cache.max_sequences
        self.columns = cache._shape.capacity + (self.q_max if settings.ring else 0)

    @classmethod
    def create(
        cls,
        metadata: TransformerCacheMetaData,
        n_layers: int,
        dtype: Any,
        quantizer: Any,
        starts: Any,
        options: Dict[str, Any],
    ) -> TransformerSteps:
        """An empty cache. `options` are the keywords of TransformerCache.init_cache()."""
        resolved = metadata.resolved()
        options = {**options, **stored.storage_of(quantizer, dtype, resolved)}
        steps = cls._made(resolved, n_layers, options)
        if starts is not None:
            steps.cache.rows_set(starts=np.asarray(starts))
        return steps

    @classmethod
    def _made(cls, resolved: Metadata, n_layers: int, options: Dict[str, Any]) -> TransformerSteps:
        device = options.pop("device", None)
        names = [*Settings._names(), "device"]
        unknown = [name for name in options if name not in names]
        if unknown:
            raise TypeError(f"there is no option {unknown[0]!r}: there are {', '.join(names)}")
        settings = Settings(**options)
        arguments = resolved.arguments()
        batch, length = arguments["max_sequences"], arguments["capacity"]
        if settings.max_batch is None:
            settings.max_batch = batch * length
        fields = {name: getattr(settings, name) for name in settings._names()}
        cache = Cache(device=device, **{**arguments, **fields, "n_layers": n_layers})
        return cls(cache, resolved, settings)

    @classmethod
    def restored(
        cls,
        metadata: TransformerCacheMetaData,
        layers: Sequence[Tuple[Any, Any]],
        index: Any,
        starts: Any,
        options: Dict[str, Any],
    ) -> TransformerSteps:
        """A cache of what another one held.

        layers  key and value of each layer, as stored.fill() takes them
        """
        resolved = metadata.resolved()
        length, batch = resolved.sequence_length, resolved.batch_size
        assert length is not None and batch is not None
        if options.get("ring"):  # what lies beyond the length are the columns of open steps
            columns = np.shape(stored._codes(layers[0][0])[0])[1]
            options = {**options, "max_batch": batch * (columns - length)}
        steps = cls._made(resolved, len(layers), options)
        cache = steps.cache
        ends = np.asarray(index, np.int64).reshape(-1)
        lowest = np.maximum(ends - length, 0) if steps.settings.ring else np.zeros_like(ends)
        if lowest.any():
            cache.rows_set(lowest)
        left = ends - lowest
        while left.any():
            valid = np.minimum(left, steps.q_max)
            cache.begin_rows(int(valid.max()), valid=valid)
            cache.commit()
            left -= valid
        for layer, (key, value) in enumerate(layers):
            stored.fill(cache, layer, key, value)
        if starts is not None:
            cache.rows_set(starts=np.asarray(starts).reshape(-1))
        return steps

    def sizes(self) -> Dict[str, Any]:
        """What kvc.operators().supports() is told of a layer."""
        cache = self.cache
        return {
            "n_kv_heads": cache.n_kv_heads,
            "head_dim": cache.head_dim_k,
            "head_dim_v": cache.head_dim_v,
            "dtype_k": self.settings.dtype,
        }

    # ---- Steps -----------------------------------------------------------------------------------

    def put_step(
        self,
        layer: int,
        query: Any,
        key: Any,
        value: Any,
        options: TransformerMetadata,
        attention_mask: Any,
        causal_mask: Any,
        token_types: Any,
    ) -> None:
        """Puts a layer of the open step, or of the next."""
        batch, q_len = tokens_of("key", key)
        if tokens_of("query", query)[1] != q_len:
            raise ShapeError(f"query has {np.shape(query)[1]} tokens per row, key has {q_len}")
        self._check("key", key, (batch, q_len, self.cache.n_kv_heads, self.cache.head_dim_k))
        heads = self.metadata.value_heads
        self._check("value", value, (batch, q_len, heads, self.cache.head_dim_v))
        given = (
            attention_mask,
            causal_mask,
            token_types,
            options.postpadded,
            options.index,
            options.valid,
        )
        step, begun = self.enter(layer, q_len, given, lambda: self._plan(q_len, given))
        self.put(layer, step, begun, lambda: self.cache.put(layer, key, value))

    def _check(self, name: str, array: Any, wanted: Tuple[Optional[int], ...]) -> None:
        batch = self.cache.max_sequences
        if tuple(np.shape(array)) != (batch, *wanted[1:]):
            raise ShapeError(
                f"{name} has the shape {tuple(np.shape(array))}; it must be {(batch, *wanted[1:])}"
            )

    def _plan(self, q_len: int, given: Tuple[Any, ...]) -> Step:
        attention_mask, causal_mask, token_types, postpadded, index, valid = given
        before = self.cache.rows().index
        continues = before
        if index is not None:
            wanted = np.broadcast_to(np.asarray(index), before.shape)
            if wanted.dtype.kind not in "iu":
                raise TypeError(f"index of cache_metadata must be integers, not {wanted.dtype}")
            continues = wanted.astype(np.int32)
        if self.settings.ring and not (causal_mask is None or isinstance(causal_mask, bool)):
            raise NotSupported(
                "causal_mask names columns, which a ring uses again: pass True, or None"
            )
        mask = None if attention_mask is None else self._mask(attention_mask, len(before), q_len)
        ends = self._ends(continues, q_len, valid, postpadded, mask)
        causal, allowed = causality(
            causal_mask, continues, ends, q_len, self.columns, token_types
        )
        arguments = {
            "valid": None if valid is None else np.asarray(valid),
            "attention_mask": mask,
            "token_types": None if token_types is None else np.asarray(token_types),
            "postpadded": bool(postpadded),
            "causal": causal,
        }
        if index is not None:
            self.cache.rows_set(continues)
        return Step(q_len, given, continues, arguments, allowed)

    @staticmethod
    def _mask(attention_mask: Any, batch: int, q_len: int) -> Any:
        """The mask as begin_rows() takes it: broadcast, bool or integers."""
        mask = shown("attention_mask", attention_mask)
        if mask.ndim == 4:
            if mask.shape[1:3] == (1, 1):  # for all tokens alike
                mask = mask[:, 0, 0]
            else:
                return np.broadcast_to(mask, (batch, 1, q_len, mask.shape[3]))
        return np.broadcast_to(mask, (batch, *mask.shape[1:])) if mask.ndim == 2 else mask

    def _ends(self, index: Int32s, q_len: int, valid: Any, postpadded: bool, mask: Any) -> Int32s:
        """One past the last position of each row in a step, at most the capacity."""
        count = np.full(len(index), q_len) if valid is None else np.asarray(valid)
        if postpadded and valid is None and mask is not None and mask.ndim == 2:
            new = [row[begin : begin + q_len] for row, begin in zip(mask, index)]
            count = np.array([np.count_nonzero(each) for each in new])
        ends = index + np.broadcast_to(count, index.shape)
        if not self.settings.ring:  # begin_rows() refuses what is beyond
            ends = np.minimum(ends, self.columns)
        last: Int32s = ends.astype(np.int32)
        return last
