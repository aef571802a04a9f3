"""The attention operators of kvc as classes."""

from __future__ import annotations

from typing import Any, Dict


from .. import Device, operators
from ..errors import BadState, NotSupported
from .kvc_attention import KvcAttention
from .lightning import LightningCacheView
from .outputs import AttentionOutput
from .registry import AttentionRegistry

@AttentionRegistry.register
class VanillaAttn(KvcAttention):
    """The definition of attention, row by row: every option, dropout and a softmax in double included,
    and always weights. For comparisons, not for speed."""

    names = ("vanilla",)
    always_weights = True


@AttentionRegistry.register
class FlashAttn(KvcAttention):
    """Softmax on the fly over tiles: every option but dropout. What kvc chooses where nothing else is
    asked for."""

    names = ("flash", "flash_attn2", "sdpa", "splash", "blockwise", "paged_attention")


@AttentionRegistry.register
class RingAttn(KvcAttention):
    """FlashAttn over stretches of the keys, each attended by itself and merged in their order; right in
    decode too."""

    names = ("ring",)


@AttentionRegistry.register
class AutoRegressiveDecodeAttn(KvcAttention):
    """FlashAttn for steps of one token per row."""

    names = ("decode", "autoregressive_decodeattn")


@AttentionRegistry.register
class LightningAttn(KvcAttention):
    """Linear attention with decay, of the states of a LightningCacheView."""

    names = ("lightning",)

    def _from_cache(self, view: Any, q: Any, k: Any, v: Any, *rest: Any) -> AttentionOutput:
        """Outputs for the layer that was put last, which concatenate_to_cache() returns as well."""
        (mask, segment_ids, sliding_window, _), extra, weights = rest
        if not isinstance(view, LightningCacheView):
            raise NotSupported("lightning attends with a LightningCacheView alone")
        given = {
            "mask": mask,
            "bias": extra["bias"],
            "segment_ids": segment_ids,
            "sliding_window": sliding_window,
            "deterministic=False": extra["dropout_seed"],
            "need_weights": weights or None,
        }
        for name, value in given.items():
            if value is not None:
                raise NotSupported(f"{name}: linear attention has no softmax over keys")
        if self.metadata.softmax_scale:
            raise NotSupported("softmax_scale: the scale of linear attention is that of its cache")
        steps = view._bound_store.steps
        if steps is None or not steps.has_put(view._layer):
            raise BadState("the layer has no open step: call concatenate_to_cache() first")
        return AttentionOutput(attention_outputs=steps.cache.attention(view._layer, q))


@AttentionRegistry.register
class AutoAttn(KvcAttention):
    """The operator that kvc chooses for each call."""

    names = ("auto",)

    def _name(self, device: Device, needs: Dict[str, Any]) -> str:
        runtime, softmax, *_ = self._fields(False)
        return operators(device).supports(
            **needs, runtime_dtype=runtime, softmax_dtype=softmax or "f32"
        )
