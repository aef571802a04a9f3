"""Attention by an operator of kvc, straight from a cache or over arrays."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, List, Optional, Tuple

import numpy as np

from .. import Device, Operator, operators
from .._arrays import dtype_code, dtype_name, kind_of
from ..device import default_device
from ..errors import (
    BackendUnavailable,
    InvalidArgument,
    NotSupported,
    ShapeError,
)
from .attention import AttentionImpl
from .attention_metadata import BLOCKS, AttentionMetadata, softmax_dtype
from .lightning import LightningCacheView
from .outputs import AttentionOutput
from .steps import tokens_of
from .transformer_view import TransformerCacheView

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._arrays import Array
    from .._sets import Mode

_FEATURES = {  # of what a call brings
    "mask": "mask",
    "bias": "bias",
    "sliding_window": "window",
    "dropout_seed": "dropout",
}


class KvcAttention(AttentionImpl):
    """Attention by an operator of kvc. Derived classes name it.

    Threads: one operator is called by one thread at a time; a call that overlaps another raises
    kvc.Busy.
    """

    names: ClassVar[Tuple[str, ...]]
    """the name of the operator in kvc.operators(), and its aliases"""
    always_weights: ClassVar[bool] = False

    def __init__(self, metadata: AttentionMetadata) -> None:
        super().__init__(metadata)
        self._forward: Tuple[Any, Dict[str, int], Optional[Operator]] = (None, {}, None)

    @classmethod
    def get_impl_name(cls) -> Tuple[str, ...]:
        """The names of the operator."""
        return cls.names

    def get_impl_metadata(self) -> AttentionMetadata:
        """The metadata that the operator was made with."""
        return self.metadata

    def forward_native(
        self,
        q: Array,
        k: Optional[Array] = None,
        v: Optional[Array] = None,
        mask: Optional[Array] = None,
        bias: Optional[Array] = None,
        init_bias: Optional[Callable[[], Any]] = None,
        causal: bool = False,
        deterministic: bool = True,
        dropout_rng: Any = None,
        sliding_window: Optional[int] = None,
        segment_ids: Any = None,
        cache_view: Any = None,
        cache_metadata: Any = None,
        need_weights: bool = False,
        layer: int = 0,
    ) -> AttentionOutput:
        """Attends.

        q               [batch, q_len, n_q_heads, key_dim], float32, float16 or bfloat16
        k, v            [batch, kv_len, n_kv_heads, key_dim / value_dim]; with a cache_view None, or
                        what its concatenate_to_cache() returned
        mask            bool [batch, n_q_heads, q_len, kv_len]: False hides
        bias            [batch, n_q_heads, q_len, kv_len], added to the scores; minus infinity hides.
                        Mask and bias both count. Both are broadcast: an extent may be 1, and that of
                        heads n_kv_heads
        init_bias       a function that makes the bias, called when neither mask nor bias is given
        causal          a query sees its own position and what is before it; the queries are the last
                        positions. With a cache_view it is the step that is causal or not
        deterministic   False: weights are dropped with dropout_prob of the metadata
        dropout_rng     then an int, or a key of uint32 [2] (jax.random.PRNGKey). The weights that are
                        dropped depend on it and on positions, not on blocks or threads
        sliding_window  a query sees its own position and the sliding_window - 1 before it
        segment_ids     [batch, length] of queries and keys, or a pair of them ([batch, q_len], [batch,
                        kv_len]): a query sees keys of its own segment alone
        cache_view      a view of which concatenate_to_cache() has just put the tokens: attention
                        straight from the cache, over what the step's tokens see. Columns of mask, bias
                        and segment_ids are those of the cache
        cache_metadata  of no effect: the step has it already
        need_weights    also returns the weights; VanillaAttn always does
        layer           without a cache_view: the layer that dropout counts with

        Returns AttentionOutput with outputs, log-sum-exp and perhaps weights. A query that sees nothing
        has outputs 0.

        Raises kvc.NotSupported (what the operator lacks, by name), kvc.ShapeError, kvc.DtypeError,
        kvc.InvalidArgument, kvc.BadState (the cache_view has no open step).
        """
        if mask is None and bias is None and init_bias is not None:
            bias = init_bias()
        seed = None if deterministic else _seed(dropout_rng)
        if seed is not None and not self.metadata.dropout_prob:
            seed = None  # keeps all weights
        extra: Dict[str, Any] = {"bias": bias, "dropout_seed": seed}
        weights = need_weights or self.always_weights
        if cache_view is not None:
            restrictions = (mask, segment_ids, sliding_window, causal)
            return self._from_cache(cache_view, q, k, v, restrictions, extra, weights)
        if k is None or v is None:
            raise TypeError("k and v must be arrays, unless a cache_view is given")
        extra.update(causal=causal, layer=layer, sliding_window=None)
        window = _window(sliding_window)
        q_len, kv_len = tokens_of("q", q)[1], tokens_of("k", k)[1]
        if window == 1:  # nothing before its own position: kvc's windows see one position at least
            mask = _both(mask, _from_own(q_len, kv_len))
        elif window is not None:
            extra["sliding_window"] = window
        if segment_ids is not None:
            mask = _both(mask, _segments(segment_ids, q_len, kv_len))
        extra["mask"] = mask
        return self._over_arrays(q, k, v, extra, weights)

    def forward_tpu(self, *args: Any, **kwargs: Any) -> AttentionOutput:
        """Raises kvc.BackendUnavailable: kvc does not compute on TPUs."""
        raise BackendUnavailable('backend "tpu": kvc computes on CPUs and on GPUs of NVIDIA\'s')

    # ---- Operators -------------------------------------------------------------------------------

    def _device(self) -> Device:
        """The device of the metadata's backend."""
        device = default_device()
        if self.metadata.backend_name == "gpu" and device.name == "cpu":
            return Device("cuda:0")
        return device

    def _name(self, device: Device, needs: Dict[str, Any]) -> str:
        """The operator of a call. `needs` are keywords of kvc.operators().supports()."""
        return self.names[0]

    def _fields(self, drops: bool) -> Tuple[Any, ...]:
        """What settings are made of."""
        metadata = self.metadata
        return (
            dtype_name(dtype_code(metadata.runtime_dtype)),
            softmax_dtype(metadata.runtime_softmax_dtype),
            metadata.softmax_scale or 0.0,
            metadata.dropout_prob if drops else 0.0,
            bool(metadata.scan_ring_attention),
            *((getattr(metadata, name), name in metadata.config_blocks) for name in BLOCKS),
        )

    # ---- Over arrays -----------------------------------------------------------------------------

    def _over_arrays(
        self, q: Any, k: Any, v: Any, extra: Dict[str, Any], weights: bool
    ) -> AttentionOutput:
        (rows, q_len), (_, kv_len) = tokens_of("q", q), tokens_of("k", k)
        (heads, dim_k), kv_heads, dim_v = np.shape(q)[2:], np.shape(k)[2], np.shape(v)[-1]
        wanted = {
            name: value for name, value in extra.items() if value is not None and value is not False
        }
        device, drops = self._device(), "dropout_seed" in wanted
        sizes: Dict[str, Any] = {"n_kv_heads": kv_heads, "head_dim": dim_k, "head_dim_v": dim_v}
        features = [feature for each, feature in _FEATURES.items() if each in wanted]
        features += ["forward", *_also(weights, not wanted.get("causal"))]
        mode = "train" if drops or q_len > 1 else "autoregressive"
        needs = {**sizes, "n_q_heads": heads, "features": features, "mode": mode}
        name = self._name(device, needs)
        settings = _settings(device, name, self._fields(drops))
        forward = self._operator(
            device,
            (settings, *sizes.values()),
            {"max_rows": rows, "max_q_len": q_len, "max_kv_len": kv_len, "max_q_heads": heads},
            lambda bounds: Operator(**dict(settings), **sizes, **bounds, device=device),
        )
        lse = np.empty((rows, q_len, heads), np.float32) if _has_lse(device, name) else None
        made = np.empty((rows, heads, q_len, kv_len), np.float32) if weights else None
        out = forward.forward(q, k, v, lse=lse, weights=made, **wanted)
        return _output(q, out, lse, made)

    def _operator(
        self,
        device: Device,
        key: Tuple[Any, ...],
        bounds: Dict[str, int],
        make: Callable[[Dict[str, Any]], Operator],
    ) -> Operator:
        """The operator of the last call, if it is one of these sizes; else another, whose bounds reach as
        far as both."""
        key = (device, *key)
        held, largest, forward = self._forward
        if forward is None or held != key:
            largest = {}
        elif all(bounds[name] <= largest[name] for name in bounds):
            return forward
        largest = {name: max(bounds[name], largest.get(name, 0)) for name in bounds}
        forward = make(largest)
        self._forward = (key, largest, forward)
        return forward

    # ---- From a cache ----------------------------------------------------------------------------

    def _from_cache(
        self,
        view: Any,
        q: Any,
        k: Any,
        v: Any,
        restrictions: Tuple[Any, ...],
        extra: Dict[str, Any],
        weights: bool,
    ) -> AttentionOutput:
        if isinstance(view, LightningCacheView):
            raise NotSupported(f"{self.names[0]}: states of a lightning cache take LightningAttn alone")
        if not isinstance(view, TransformerCacheView):
            raise TypeError(f"cache_view must be a TransformerCacheView, not {type(view).__name__}")
        steps = view._bound_steps
        for name, array in (("k", k), ("v", v)):
            wanted = view._shape_of("key" if name == "k" else "value")
            if array is not None and tuple(np.shape(array)) != wanted:
                raise ShapeError(
                    f"{name} has the shape {tuple(np.shape(array))}, the cache_view {wanted}: pass None, "
                    "or what its concatenate_to_cache() returned"
                )
        step, visible = steps.allowed_of(view._layer)
        mask, segment_ids, sliding_window, causal = restrictions
        causal_step = step.arguments["causal"]
        if causal and not causal_step and step.allowed is None:
            raise NotSupported(
                "causal=True, but the step of the cache_view is not causal: pass causal_mask=True to "
                "concatenate_to_cache()"
            )
        if mask is visible:  # what the cache hides anyway
            mask = None
        if step.allowed is not None:
            mask = _both(mask, step.allowed)
        rows, q_len = tokens_of("q", q)
        columns = visible.shape[3]
        positions = (step.index[:, None] + np.arange(q_len))[:, None, :, None]
        if segment_ids is not None:
            mask = _both(mask, _segments(segment_ids, q_len, columns))
        window = _window(sliding_window)
        if window is not None and window - 1 != steps.settings.reach:
            if steps.settings.ring:
                raise NotSupported("sliding_window: the window of a ring is its reach")
            mask = _both(mask, np.arange(columns) > positions - window)
        seed = extra["dropout_seed"]
        lengths = steps.cache.rows().index - step.index
        mode: Mode = "prefill" if lengths.max() > 1 else "autoregressive"
        mode = mode if seed is None else "train"
        heads = np.shape(q)[2]
        given = {**extra, "mask": mask}
        features = [feature for each, feature in _FEATURES.items() if given.get(each) is not None]
        features += ["transformer", *_also(weights, not causal_step)]
        features += ["window"] * (steps.settings.reach is not None or steps.settings.ring)
        device = self._device()
        needs = {"features": features, "mode": mode, "n_q_heads": heads, **steps.sizes()}
        name = self._name(device, needs)
        settings = _settings(device, name, self._fields(seed is not None))
        # What kvc chooses by itself need not be bound.
        key = None if settings == _settings(device, "flash", _DEFAULT) else settings
        steps.bind(view._layer, mode, key, lambda: Operator(**dict(settings), device=device))
        lse = np.empty((rows, q_len, heads), np.float32) if _has_lse(device, name) else None
        made = np.empty((rows, heads, q_len, columns), np.float32) if weights else None
        out = steps.cache.attention(
            view._layer, q, bias=extra["bias"], mask=mask, dropout_seed=seed, lse=lse, weights=made
        )
        return _output(q, out, lse, made)


@functools.lru_cache(maxsize=256)
def _settings(device: Device, name: str, fields: Tuple[Any, ...]) -> Tuple[Tuple[str, Any], ...]:
    """The arguments of kvc.Operator for an operator and what _fields() returns."""
    info = operators(device).find(name)
    runtime, softmax, scale, dropout, scan, *blocks = fields
    settings: Dict[str, Any] = {
        "name": info.canonical,
        "runtime_dtype": runtime,
        "softmax_dtype": softmax,
        "softmax_scale": scale,
        "dropout_prob": dropout,
        "scan": scan or "scan" not in info.features,
    }
    for block, (size, from_config) in zip(("block_q", "block_k", "block_b"), blocks):
        if block == "block_b" and size == 1:  # a row at a time, as every operator does
            size = 0
        if size and from_config and not _has_block(device, info, block, size):
            size = 0
        settings[block] = size
    return tuple(settings.items())


_DEFAULT = ("f32", None, 0.0, 0.0, True, (0, False), (0, False), (0, False))


def _has_block(device: Device, info: Any, name: str, size: int) -> bool:
    """Whether an operator has blocks of a size."""
    if name not in info.features:
        return False
    setting: Dict[str, Any] = {name: size}
    try:
        Operator(info.name, device=device, **setting).close()
    except NotSupported:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _has_lse(device: Device, name: str) -> bool:
    """Whether an operator returns the log-sum-exp; one of a caller's may not."""
    return "lse" in operators(device).find(name).features


def _also(weights: bool, not_causal: bool) -> List[str]:
    return ["weights"] * weights + ["not_causal"] * not_causal


def _output(q: Any, out: Any, lse: Any, weights: Any) -> AttentionOutput:
    """Results as arrays of the kind of q."""
    return AttentionOutput(
        attention_weights=None if weights is None else kind_of(q, weights),
        attention_outputs=out,
        attention_lse=None if lse is None else kind_of(q, lse),
    )


def _window(sliding_window: Optional[int]) -> Optional[int]:
    if sliding_window is None:
        return None
    window = operator.index(sliding_window)
    if window < 1:
        raise InvalidArgument(f"sliding_window is {window}; it must be 1 or more, or None")
    return window


def _from_own(q_len: int, kv_len: int) -> npt.NDArray[np.bool_]:
    """Positions from its own on, of queries that are the last positions."""
    return np.arange(kv_len) >= np.arange(kv_len - q_len, kv_len)[:, None]


def _both(mask: Any, other: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """What two masks show."""
    if mask is None:
        return other
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise InvalidArgument(f"mask is of {array.dtype}; it must be bool")
    both: npt.NDArray[np.bool_] = array & other
    return both


def _segments(segment_ids: Any, q_len: int, kv_len: int) -> npt.NDArray[np.bool_]:
    """bool [batch, 1, q_len, kv_len]: queries and keys of one segment."""
    is_pair = isinstance(segment_ids, (tuple, list)) and len(segment_ids) == 2
    q_ids, kv_ids = segment_ids if is_pair else (segment_ids, segment_ids)
    q_ids, kv_ids = np.asarray(q_ids), np.asarray(kv_ids)
    for name, ids, length in (("queries", q_ids, q_len), ("keys", kv_ids, kv_len)):
        if ids.ndim != 2 or ids.shape[1] != length:
            raise ShapeError(
                f"segment_ids of {name} has the shape {ids.shape}; it must be [batch, {length}]"
            )
    same: npt.NDArray[np.bool_] = q_ids[:, None, :, None] == kv_ids[:, None, None, :]
    return same


def _seed(dropout_rng: Any) -> int:
    """A seed of 64 bits from an int, or a key of two uint32, the upper first."""
    if dropout_rng is None:
        raise InvalidArgument("deterministic is False: dropout_rng must be an int or a key, not None")
    if np.ndim(dropout_rng) == 0:
        return operator.index(dropout_rng)
    key = np.asarray(dropout_rng)
    if key.shape != (2,) or key.dtype.kind not in "iu":
        raise InvalidArgument(
            f"dropout_rng has the shape {key.shape} and {key.dtype}; it must be an int or uint32 [2]"
        )
    return (int(key[0]) & 0xFFFFFFFF) << 32 | int(key[1]) & 0xFFFFFFFF
