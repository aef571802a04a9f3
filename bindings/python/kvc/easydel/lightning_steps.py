"""A lightning cache below its views: made at the first use, when the sizes are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, cast

import numpy as np

from .. import Cache, Metadata, slopes
from ..errors import InvalidArgument, NotSupported, ShapeError
from .metadata import LightningCacheMetaData, LightningMetadata
from .steps import Step, Steps, causality, shown, tokens_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Int32s = npt.NDArray[np.int32]

_MOST_AT_ONCE = 2048  # tokens of a row in a step, unless the first step has more

OPTIONS: Dict[str, Any] = {
    "slopes": "alibi",
    "scale": None,
    "checkpoints": 24,
    "draft_tokens": 0,
    "max_batch": None,
    "device": None,
}
"""keywords of LightningCache.init_cache(), with their defaults"""


class LightningStore:
    """What the views of a lightning cache share: metadata, options, and once it is made the cache."""

    def __init__(
        self, n_layers: int, metadata: LightningCacheMetaData, options: Dict[str, Any]
    ) -> None:
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise TypeError(f"there is no option {unknown[0]!r}: there are {', '.join(OPTIONS)}")
        self.n_layers = n_layers
        self.metadata = metadata
        self.options = {**OPTIONS, **options}
        self.steps: Optional[Steps] = None
        self._scaled = False

    # ---- Making ----------------------------------------------------------------------------------

    def make(self, batch: int, q_len: int, heads: int, dim_k: int, dim_v: int) -> Steps:
        """Makes the cache, if it is not made yet, with sizes for what metadata lacks."""
        if self.steps is None:
            given = self.metadata
            resolved = Metadata(
                kind="lightning",
                batch_size=given.batch_size or batch,
                num_hidden_layers=self.n_layers,
                num_heads=given.num_heads or heads,
                head_dim=given.head_dim,
                key_heads=given.key_heads,
                value_heads=given.value_heads,
                key_dim=given.key_dim or given.head_dim or dim_k,
                value_dim=given.value_dim or given.head_dim or dim_v,
            ).resolve()
            arguments = resolved.arguments()
            rows = arguments["max_sequences"]
            cache = Cache(
                **arguments,
                max_batch=self.options["max_batch"] or rows * max(q_len, _MOST_AT_ONCE),
                checkpoints=self.options["checkpoints"],
                draft_states=self.options["draft_tokens"],
                device=self.options["device"],
            )
            for layer, each in enumerate(self._slopes(cache.n_kv_heads)):
                cache.bind_decay(each, layers=layer)
            self.steps = Steps(cache)
        return self.steps

    def _slopes(self, heads: int) -> List[Any]:
        """The slopes of each layer."""
        given, n = self.options["slopes"], self.n_layers
        if isinstance(given, str):
            family = cast(Any, given)
            return [slopes(family, heads, layer=layer, n_layers=n) for layer in range(n)]
        array = np.asarray(given, np.float32)
        if array.shape not in ((heads,), (n, heads)):
            raise ShapeError(
                f"slopes has the shape {array.shape}; it must be ({heads},) or ({n}, {heads})"
            )
        return list(np.broadcast_to(array, (n, heads)))

    # ---- Steps -----------------------------------------------------------------------------------

    def put_step(
        self,
        layer: int,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        causal_mask: Any,
        options: LightningMetadata,
    ) -> Tuple[Any, Any]:
        """Puts a layer of the open step, or of the next. Returns outputs and the tokens that count."""
        batch, q_len = tokens_of("key", key)
        for name, array in (("query", query), ("value", value)):
            if tokens_of(name, array) != (batch, q_len):
                raise ShapeError(
                    f"{name} has {tokens_of(name, array)} rows and tokens, key has {(batch, q_len)}"
                )
        (heads, dim_k), dim_v = np.shape(key)[2:], np.shape(value)[3]
        steps = self.make(batch, q_len, heads, dim_k, dim_v)
        cache = steps.cache
        for name, array, dim in (("key", key, cache.head_dim_k), ("value", value, cache.head_dim_v)):
            wanted = (cache.max_sequences, q_len, cache.n_kv_heads, dim)
            if tuple(np.shape(array)) != wanted:
                raise ShapeError(f"{name} has the shape {tuple(np.shape(array))}; it must be {wanted}")
        if self.options["scale"] is not None and not self._scaled:
            cache.bind_attention(np.shape(query)[2], scale=self.options["scale"])
            self._scaled = True
        given = (attention_mask, causal_mask, options.valid, options.token_mask)
        step, begun = steps.enter(layer, q_len, given, lambda: self._plan(steps, q_len, given))
        outputs = steps.put(
            layer, step, begun, lambda: cache.put_attention(layer, key, value, query)
        )
        return outputs, step.mask

    def _plan(self, steps: Steps, q_len: int, given: Tuple[Any, ...]) -> Step:
        attention_mask, causal_mask, valid, token_mask = given
        index = steps.cache.rows().index
        batch = len(index)
        lengths = np.full(batch, q_len) if valid is None else np.asarray(valid)
        counts = np.arange(q_len) < np.broadcast_to(lengths, (batch,))[:, None]
        shows = np.ones((batch, q_len), np.bool_)
        for name, mask in (("attention_mask", attention_mask), ("token_mask", token_mask)):
            if mask is not None:
                shows &= _new_columns(name, shown(name, mask), index, q_len)
        if causal_mask is not None:
            ends = (index + lengths).astype(np.int32)
            if not causality(causal_mask, index, ends, q_len, int(ends.max(initial=0)))[0]:
                raise NotSupported(
                    "causal_mask is not lower triangular: linear attention is causal by construction"
                )
        arguments = {
            "valid": None if valid is None else np.asarray(valid),
            "attention_mask": None if shows.all() else shows,
        }
        return Step(q_len, given, index, arguments, mask=shows & counts)

    def index_of(self, layer: int) -> Optional[Int32s]:
        """Where rows continue; None: there is no storage yet."""
        return None if self.steps is None else self.steps.index_of(layer)


def _new_columns(name: str, mask: Any, index: Int32s, q_len: int) -> npt.NDArray[np.bool_]:
    """bool [batch, q_len] of the new tokens in a mask: [batch, q_len], [batch, n] over all positions,
    or [batch, 1, rows, n], of which the last row counts."""
    if mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2]:
        mask = mask[:, 0, -1]
    batch, last = len(index), int(index.max(initial=0)) + q_len
    if mask.ndim != 2 or mask.shape[0] not in (1, batch):
        raise ShapeError(
            f"{name} has the shape {mask.shape}; it must be [batch, length] or [batch, 1, rows, length]"
        )
    shows: npt.NDArray[np.bool_] = np.broadcast_to(mask != 0, (batch, mask.shape[1]))
    if mask.shape[1] == q_len:
        return shows
    if mask.shape[1] < last:
        raise ShapeError(
            f"{name} has {mask.shape[1]} columns; it must have {q_len}, or reach position {last - 1}"
        )
    return np.stack([row[begin : begin + q_len] for row, begin in zip(shows, index)])


def restored(
    metadata: LightningCacheMetaData,
    states: List[Any],
    index: Any,
    options: Dict[str, Any],
) -> LightningStore:
    """A store of the states of each layer, None where a layer has none.

    index  [batch]; None: 1, as positions count from it alone
    """
    store = LightningStore(len(states), metadata, options)
    given = [np.asarray(each, np.float32) for each in states if each is not None]
    if not given:
        return store
    if given[0].ndim != 4 or any(each.shape != given[0].shape for each in given):
        raise ShapeError(
            f"key_value has the shapes {[each.shape for each in given]}; all must be the same [batch, "
            "heads, key_dim, value_dim]"
        )
    batch, heads, dim_k, dim_v = given[0].shape
    cache = store.make(batch, 1, heads, dim_k, dim_v).cache
    places = np.ones(batch, np.int32) if index is None else np.asarray(index).reshape(-1)
    if len(places) != cache.max_sequences:
        raise ShapeError(f"index has {len(places)} elements, key_value has {batch} rows")
    cache.rows_set(places)
    for layer, state in enumerate(states):
        for row in np.flatnonzero(places) if state is not None else ():
            cache.lightning_write(layer, np.asarray(state, np.float32)[row : row + 1], begin=int(row))
        if state is not None and np.asarray(state)[places == 0].any():
            raise InvalidArgument("index is 0 for a row whose state is not zeros")
    return store
