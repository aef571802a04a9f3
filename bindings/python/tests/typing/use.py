"""What a type checker must know about the package. It is checked (`mypy --strict`), not run: a wrong
type fails, and so does a `type: ignore` that hides nothing."""

from typing import Any, List, Optional, Tuple, Union

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import kvc
import kvc.easydel as ed

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[Union[np.float32, np.float16, np.uint16]]


class Tensor:
    """An array of another library."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> Tuple[int, int]:
        return 1, 0


def results(cache: kvc.Cache, floats: Floats, halves: npt.NDArray[np.float16], q: Tensor) -> None:
    assert_type(cache.attention(0, floats), Floats)
    assert_type(cache.attention(0, halves), Floats)
    assert_type(cache.attention(0, memoryview(b"")), Floats)
    assert_type(cache.attention(0, q), Tensor)
    assert_type(cache.attention(0, q, numpy=True), Floats)
    assert_type(cache.attention(0, q, halves, bias=floats, dtype="bf16"), npt.NDArray[np.float16])
    assert_type(cache.put_attention(0, floats, floats, floats), Floats)
    assert_type(cache.put_attention(0, q, q, q, lse=floats), Tensor)
    assert_type(cache.put_attention(0, q, q, q, numpy=True), Floats)
    assert_type(cache.put_attention(0, q, q, q, floats), Floats)
    assert_type(cache.state_layout(), List[kvc.StateSequence])
    assert_type(cache.state_get(0, "conv"), Stored)
    assert_type(cache.state_get(0, "recurrent", floats), Floats)
    assert_type(cache.state_gather(0, "conv", 0, 3), Stored)
    assert_type(cache.state_gather(0, "conv", 0, into=floats), Floats)
    cache.state_put(0, "state", floats)  # type: ignore[arg-type]
    assert_type(cache.state_view(0, "conv"), kvc.View)
    assert_type(cache.checkpoint_list(0), List[int])
    assert_type(cache.encoder_query(0), Optional[kvc.EncoderInput])
    cache.encoder_put(0, 0, floats, q)
    cache.encoder_put(0, 0, halves, [1.0])  # type: ignore[arg-type]
    assert_type(cache.gather(0, 0), Tuple[Stored, Stored])
    assert_type(cache.gather(0, 0, floats, q), Tuple[Floats, Tensor])
    assert_type(cache.mask(0, floats), Floats)
    held = cache.get_codes(0)
    assert_type(held, kvc.Codes)
    assert_type(held.k_scales, Optional[kvc.View])
    cache.put_codes(0, *held)
    cache.put_codes(0, floats, None, q)
    assert_type(cache.get_copy(0), Tuple[Stored, Stored])
    assert_type(cache.get_copy(0, floats, q), Tuple[Floats, Tensor])
    cache.get_copy(0, False, dtype="f16")
    cache.bind_scales([1.0])  # type: ignore[arg-type]
    cache.bind_scales(floats, v_scales=floats, layers=0)
    cache.put(0, floats)
    assert_type(cache.put_attention(0, floats, None, floats), Floats)
    codes, scales = kvc.encode(q, "q8_0", rotate=True)
    assert_type(kvc.decode(codes, scales, "q8_0"), Floats)
    assert_type(kvc.decode(codes, None, "f8_e4m3", values=q, scale=0.5), Tensor)
    kvc.encode([1.0], "q8_0")  # type: ignore[arg-type]
    assert_type(kvc.storage_info("nf4", 64, block=16), kvc.StorageInfo)
    assert_type(cache.begin_rows(2, valid=1, attention_mask=[[1, 0]]), kvc.Pass)
    cache.begin_rows(2, valid=[1.5])  # type: ignore[list-item]
    assert_type(cache.fits_rows(2, token_types=[[0, 1]], causal=False), bool)
    assert_type(cache.rows(1), kvc.Rows)
    assert_type(cache.rows().starts, npt.NDArray[np.int32])
    cache.rows_set(starts=[0, 1], begin=1)
    cache.insert(cache, 1)
    assert_type(cache.rows_view(0), kvc.Codes)
    cache.rows_fill(0, held.k, held.v, k_scales=held.k_scales, v_scales=held.v_scales)
    cache.bind_decay(kvc.slopes("alibi", 8))
    kvc.slopes("other", 8)  # type: ignore[arg-type]
    assert_type(cache.lightning_read(0), Floats)
    assert_type(cache.lightning_read(0, into=q), Tensor)
    cache.lightning_write(0, q, begin=1)
    assert_type(cache.attention(0, floats, dropout_seed=1, no_sinks=True), Floats)
    cache.bind_operator(None, layers=range(2), modes="prefill")
    cache.bind_operator(None, modes=["decode"])  # type: ignore[list-item]
    view, _ = cache.get(0)
    assert_type(cache.get(0, v=False), Tuple[kvc.View, None])
    assert_type(cache.get(0, k=False), Tuple[None, kvc.View])
    assert_type(view[:, 0], kvc.View)
    assert_type(view.__array__(), npt.NDArray[np.generic])
    assert_type(cache.attention(0, view), Floats)
    cache.attention(0, 3.0)  # type: ignore[call-overload]
    cache.put(0, [1.0], floats)  # type: ignore[arg-type]


def operators(device: kvc.Device, floats: Floats, q: Tensor) -> None:
    found = kvc.operators(device)
    assert_type([info.name for info in found], List[str])
    assert_type(found.supports(mode="train", features=["dropout"]), str)
    found.supports(features=["colour"])  # type: ignore[list-item]
    operator = kvc.Operator("flash", block_q=8, base=kvc.OperatorSettings(), device=device)
    assert_type(operator.info, kvc.OperatorInfo)
    assert_type(operator.settings, kvc.OperatorSettings)
    assert_type(operator.forward(floats, floats, q, causal=True), Floats)
    assert_type(operator.forward(q, q, q), Tensor)
    assert_type(operator.forward(q, q, q, numpy=True), Floats)
    assert_type(operator.forward(q, q, q, floats), Floats)
    kvc.merge_attention(floats, floats, q, q)
    kvc.apply_sinks(q, q, floats)
    assert_type(kvc.repeat_kv_heads(q, 2, floats), Floats)
    mask = kvc.dropout_mask(1, 0.5, n_heads=2, q_positions=[0], k_positions=range(3))
    assert_type(mask, npt.NDArray[np.bool_])
    assert_type(kvc.padding([[0, 1]])[0], npt.NDArray[np.int32])
    assert_type(kvc.Metadata(batch_size=2).resolve(), kvc.Metadata)
    kvc.Metadata(kind="causal")  # type: ignore[arg-type]

    @found.register("mine", features=["lse"])
    class Mine:
        def forward(self, call: kvc.OperatorCall) -> None:
            assert_type(call.lse, Optional[kvc.View])
            assert_type(call.visible(), npt.NDArray[np.bool_])
            assert_type(call.visible(floats), Floats)
            call.column_positions(call.sequences[0])

    assert_type(Mine(), Mine)


def arguments(device: kvc.Device) -> None:
    cache = kvc.Cache(
        n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, dtype=np.float16, device=device
    )
    assert_type(
        kvc.Cache.memory_bytes(n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, reach=4), int
    )
    kvc.Cache(kind="encoder", n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, inputs=2)
    kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=64, capacity=8, dtype="nf4", block=16, rotate="k")
    kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=64, capacity=8, v_first=0, interleaved=False)
    kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=64, capacity=8, rotate="q")  # type: ignore[call-overload]
    kvc.Cache(kind="encoder", n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, v_first=0)  # type: ignore[call-overload]
    kvc.Cache(kind="coder", n_layers=1, n_kv_heads=1, head_dim=8, capacity=8)  # type: ignore[call-overload]
    kvc.Cache(n_layer=1)  # type: ignore[call-overload]
    kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8)  # type: ignore[call-overload]
    kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, inputs=2)  # type: ignore[call-overload]
    kvc.Cache(kind="recurrent", n_layers=1, capacity=8)  # type: ignore[call-overload]
    kvc.Cache.memory_bytes(n_layers=1)  # type: ignore[call-overload]
    assert_type(kvc.Cache.memory_bytes(kind="recurrent", n_layers=1, state_shape=(2, 8)), int)
    kvc.Cache(kind="transformer", n_layers=1, n_kv_heads=1, head_dim=8, capacity=8, ring=True)
    kvc.Cache(kind="transformer", n_layers=1, n_kv_heads=1, head_dim=8)  # type: ignore[call-overload]
    kvc.Cache(kind="lightning", n_layers=1, n_kv_heads=1, head_dim=8, draft_states=2)
    kvc.Cache(kind="lightning", n_layers=1, n_kv_heads=1, head_dim=8, dtype="f16")  # type: ignore[call-overload]
    layer = kvc.Layer(kind="recurrent", state_shape=(2, 8, 8))
    kvc.Layer(2, 16)  # type: ignore[call-arg]
    kvc.Layer(n_heads=2)  # type: ignore[call-arg]
    assert_type(kvc.Cache.from_layers([layer], max_sequences=2), kvc.Cache)
    assert_type(kvc.Cache.wrap([cache], [(0, 0), (cache, 0)]), kvc.Cache)
    assert_type(cache.owner(0), Tuple[kvc.Cache, int])
    assert_type(kvc.Cache.layers_memory_bytes([layer]), int)
    with cache.forward(range(3), np.zeros(3, np.int32)) as block:
        assert_type(block.cache, kvc.Cache)
    assert_type(cache.runs(0, 0), List[kvc.Run])
    assert_type(kvc.CacheFull("").status, kvc.Status)


def nouns(metadata: ed.TransformerCacheMetaData, q: Floats) -> None:
    cache = ed.TransformerCache.init_cache(None, metadata, None, dtype="f16", ring=True)
    assert_type(cache, ed.TransformerCache)
    assert_type(cache.views[0], Optional[ed.TransformerCacheView])
    assert_type(cache.insert(cache, 0).insert_index(0, 0), ed.TransformerCache)
    assert_type(ed.TransformerCacheView.from_json("{}"), ed.TransformerCacheView)
    assert_type(metadata.replace(head_dim=4), ed.TransformerCacheMetaData)
    assert_type(cache.to_pure()[1], ed.TransformerCacheMetaData)
    attention = ed.AttentionRegistry.create("flash", ed.AttentionMetadata.from_config(None, 0.5))
    assert_type(attention, ed.AttentionImpl)
    assert_type(attention(q=q, k=q, v=q), ed.AttentionOutput)
    assert_type(ed.FlashAttn(ed.AttentionMetadata()).forward_native(q, q, q), ed.AttentionOutput)
    assert_type(ed.AttentionMetadata().get_shardings("__train__"), Tuple[ed.PartitionSpec, ...])
    states = ed.LightningCache.init_cache(2, ed.LightningCacheMetaData.create(None))
    assert_type(states.views[1], Optional[ed.LightningCacheView])

    @ed.AttentionRegistry.register
    class Mine(ed.FlashAttn):
        """An operator of a caller's."""

    assert_type(Mine.repeat_kv_heads(q, q, 2), Tuple[Any, Any])
