"""kvc.easydel: attention operators by name, operators of callers, and what all operators share."""

import enum
import inspect
import types

import numpy as np
import pytest

import kvc
import kvc.easydel as ed
from easydel_cases import dense, empty


@pytest.fixture
def registry():
    """The registry, which loses what a test adds."""
    before = dict(ed.AttentionRegistry._classes)
    yield ed.AttentionRegistry
    ed.AttentionRegistry._classes.clear()
    ed.AttentionRegistry._classes.update(before)


def impl(names="mine", **functions):
    """A class of a caller's; each function returns its name."""

    def named(name):
        return lambda self, *args, **kwargs: ed.AttentionOutput(attention_outputs=(name, args, kwargs))

    body = {
        "get_impl_name": classmethod(lambda cls: names),
        "get_impl_metadata": lambda self: self.metadata,
        "forward_native": named("native"),
        **{name: named(name) for name in functions},
    }
    return type("Mine", (ed.AttentionImpl,), body)


# ---- Names ---------------------------------------------------------------------------------------


def test_names_and_classes(registry):
    names = [
        "vanilla",
        "flash",
        "flash_attn2",
        "sdpa",
        "splash",
        "blockwise",
        "paged_attention",
        "ring",
        "decode",
        "autoregressive_decodeattn",
        "lightning",
        "auto",
    ]
    assert registry.list_implementations()[: len(names)] == names
    for name in names:
        cls = registry.get(name)
        assert issubclass(cls, ed.AttentionImpl) and cls.__doc__
        metadata = ed.AttentionMetadata()
        made = registry.create(impl_name=name, metadata=metadata)
        assert type(made) is cls and made.get_impl_metadata() is metadata is made.metadata
        assert name in cls.get_impl_name()
        if name != "auto":
            found = kvc.operators().find(name)
            assert found.canonical == cls.get_impl_name()[0]
    assert registry.get("sdpa") is ed.FlashAttn and registry.get("vanilla") is ed.VanillaAttn


def test_unknown_names_are_value_errors(registry):
    for call in (registry.get, lambda name: registry.create(name, ed.AttentionMetadata())):
        for name in ("cudnn", "cuda_flash_attn2", "Vanilla", ""):  # the first two are of CUDA devices
            with pytest.raises(ValueError, match="there are vanilla, flash, .*auto") as error:
                call(name)
            assert isinstance(error.value, kvc.NotFound)


def test_operators_of_kvc_appear_beside_the_classes(registry):
    @kvc.operators().register("third", "alias")
    def third(call):
        np.asarray(call.out)[...] = 3
        np.asarray(call.lse)[...] = 0

    try:
        assert registry.list_implementations()[-2:] == ["third", "alias"]
        cls = registry.get("alias")
        assert cls is registry.get("alias") and cls.get_impl_name() == ("alias",)
    finally:
        kvc.operators().unregister("third")
    assert "third" not in registry.list_implementations()
    with pytest.raises(kvc.NotFound):
        registry.get("alias")


def test_an_operator_of_kvc_attends(registry):
    @kvc.operators().register("third", features=["forward", "lse", "not_causal"])
    def third(call):
        np.asarray(call.out)[...] = 3
        np.asarray(call.lse)[...] = 0

    try:
        q = np.ones((1, 2, 2, 4), np.float32)
        output = registry.create("third", ed.AttentionMetadata())(q, q, q)
        assert (output.attention_outputs == 3).all() and not output.attention_lse.any()
        with pytest.raises(kvc.NotSupported, match="bias"):
            bias = np.zeros((2, 2), np.float32)
            registry.create("third", ed.AttentionMetadata())(q, q, q, bias=bias)
    finally:
        kvc.operators().unregister("third")


def test_a_class_is_registered_by_a_decorator(registry):
    classes = len(registry._classes)
    cls = registry.register(impl(("mine", "other")))
    assert registry.list_implementations()[classes : classes + 2] == ["mine", "other"]
    assert registry.get("other") is cls
    registry.register(cls)  # again, without a warning
    with pytest.warns(UserWarning, match="takes the name 'mine' of Mine"):
        newer = registry.register(impl("mine"))
    assert registry.get("mine") is newer and registry.get("other") is cls
    with pytest.raises(TypeError, match="abstract"):
        ed.AttentionImpl(ed.AttentionMetadata())


# ---- Dispatch ------------------------------------------------------------------------------------


class Backends(enum.Enum):
    CPU = "cpu"
    GPU = "GPU"


OWN = ["forward_cpu", "forward_gpu", "forward_cuda", "forward_rocm", "forward_tpu"]


@pytest.mark.parametrize(
    "backend, own, alone",
    [
        (None, "forward_cpu", "native"),
        ("cpu", "forward_cpu", "native"),
        (Backends.CPU, "forward_cpu", "native"),
        ("gpu", "forward_gpu", "native"),
        ("cuda", "forward_gpu", "native"),
        (Backends.GPU, "forward_gpu", "native"),
        ("tpu", "forward_tpu", "native"),
    ],
)
def test_the_backend_decides(backend, own, alone):
    metadata = ed.AttentionMetadata(backend=backend)
    for functions, wanted in ((OWN, own), ([], alone)):
        made = impl(**dict.fromkeys(functions))(metadata)
        assert made(1, mask=2).attention_outputs == (wanted, (1,), {"mask": 2})
    cuda = impl(forward_cuda=None)(metadata)
    assert cuda.forward_gpu().attention_outputs[0] == "forward_cuda"
    assert cuda.forward_rocm().attention_outputs[0] == "forward_cuda"
    assert impl(forward_gpu=None)(metadata).forward_rocm().attention_outputs[0] == "forward_gpu"


def test_other_backends():
    with pytest.raises(RuntimeError, match="'npu'"):
        impl()(ed.AttentionMetadata(backend="npu"))(1)
    q = np.ones((1, 1, 1, 4), np.float32)
    for backend in ("gpu", "tpu"):  # this machine's kvc has none
        with pytest.raises(kvc.BackendUnavailable):
            ed.FlashAttn(ed.AttentionMetadata(backend=backend))(q, q, q)
    assert ed.FlashAttn(ed.AttentionMetadata()).current_backend() == "cpu"
    with pytest.raises(kvc.BackendUnavailable):
        ed.FlashAttn(ed.AttentionMetadata(backend="gpu"))(q, cache_view=_stepped(q))


def _stepped(q):
    view = empty(_sizes())[0]
    view.concatenate_to_cache(q, q, q, None, None, None, None, True)
    return view


def _sizes():
    return ed.TransformerCacheMetaData.create(1, 4, 1, 0, 1, 4)


# ---- Helpers -------------------------------------------------------------------------------------


def test_modes():
    attention = ed.FlashAttn(ed.AttentionMetadata())
    assert attention.get_mode(np.zeros((2, 1, 4, 8), np.float32)) == "__autoregressive__"
    assert attention.get_mode(np.zeros((2, 3, 1, 8), np.float32)) == "__train__"
    assert attention.get_mode(np.zeros((2, 3, 1, 8), np.float32), BTHD=False) == "__autoregressive__"
    with pytest.raises(kvc.ShapeError):
        attention.get_mode(np.zeros((2, 3, 1), np.float32))


def test_heads_are_repeated():
    k, v = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.ones((1, 2, 3, 5), np.float16)
    repeated = ed.AttentionImpl.repeat_kv_heads(k, v, 2)
    np.testing.assert_array_equal(repeated[0], np.repeat(k, 2, axis=2))
    np.testing.assert_array_equal(repeated[1], np.repeat(v, 2, axis=2))
    assert repeated[1].dtype == np.float16


def test_stable_shardings():
    mesh = types.SimpleNamespace(shape={"dp": 2, "tp": 4, "one": 1})
    attention = ed.AttentionRegistry.create("vanilla", ed.AttentionMetadata(mesh=mesh))
    stable = attention.create_stable_sharding
    spec, other = ed.PartitionSpec("dp", ("dp", "tp"), "sp"), ed.PartitionSpec("a", "b", "c")
    assert stable() is None and stable(spec, dep=None) is None and stable(None, dep=True) is None
    assert stable(spec) == spec
    assert stable(spec, [1]) == (None, ("dp", "tp"), None)
    assert stable(spec, [0, -1], clone_ps=other) == ("a", None, "c")
    assert stable(spec, tensor=np.zeros((3, 8, 5))) == (None, ("dp", "tp"), None)
    assert stable(spec, [0], tensor=np.zeros((4, 8))) == ("dp", None)
    assert isinstance(stable(spec), ed.PartitionSpec)


def test_outputs_survive_json():
    q = np.random.default_rng(0).standard_normal((1, 3, 2, 4), dtype=np.float32)
    output = ed.VanillaAttn(ed.AttentionMetadata())(q, q, q)
    again = ed.AttentionOutput.from_json(output.to_json())
    for name in ("attention_weights", "attention_outputs", "attention_lse"):
        np.testing.assert_array_equal(getattr(again, name), getattr(output, name))
    assert list(output.to_dict())[:2] == ["attention_weights", "attention_outputs"]
    assert output.replace() is output
    changed = output.replace(attention_weights=None)
    assert changed.attention_weights is None and output.attention_weights is not None
    assert ed.AttentionOutput().to_dict() == dict.fromkeys(output.to_dict())
    np.testing.assert_allclose(output.attention_outputs, dense(q, q, q)[0], rtol=1e-5, atol=1e-6)


# ---- The package ---------------------------------------------------------------------------------


def test_every_public_name_is_documented():
    for name in ed.__all__:
        each = getattr(ed, name)
        assert inspect.getdoc(each), name
        for method, member in inspect.getmembers(each):
            if method.startswith("_") or not callable(member) and not isinstance(member, property):
                continue
            assert inspect.getdoc(member), f"{name}.{method}"


SIGNATURES = {
    ed.TransformerCache.init_cache: "mesh metadata partition_manager dtype starts quantizer",
    ed.TransformerCache.init_empty: "num_hidden_layers",
    ed.TransformerCache.insert: "self other slot quantizer partition_manager",
    ed.TransformerCache.insert_index: "self index slot partition_manager",
    ed.TransformerCache.insert_starts: "self starts slot partition_manager",
    ed.TransformerCache.from_pure: "pure metadata",
    ed.TransformerCacheView: "key value index starts metadata layer_index",
    ed.TransformerCacheView.init: "mesh dtype metadata quantizer partition_manager starts layer_index",
    ed.TransformerCacheView.concatenate_to_cache: "self query key value quantizer cache_metadata "
    "attention_mask partition_manager causal_mask token_type_ids",
    ed.TransformerMetadata: "postpadded index",
    ed.LightningCacheMetaData.create: "partition_axis batch_size num_heads head_dim key_heads value_heads "
    "key_dim value_dim",
    ed.LightningCacheView: "key_value metadata layer_index",
    ed.LightningCacheView.init: "metadata layer_index",
    ed.LightningCacheView.concatenate_to_cache: "self query key value attention_mask kv_sharding quantizer "
    "causal_mask token_type_ids",
    ed.LightningCache.init_cache: "num_hidden_layers metadata",
    ed.AttentionMetadata: "runtime_dtype runtime_softmax_dtype sequence_axis_name mesh platform backend "
    "partition_axis partition_manager base_config scan_ring_attention softmax_scale dropout_prob "
    "blocksize_q blocksize_k blocksize_b",
    ed.AttentionMetadata.from_config: "config softmax_scale dropout_prob",
    ed.AttentionMetadata.set_attrs_carefully: "self attr_name default pickup_name use_base_config",
    ed.AttentionMetadata.get_shardings: "self mode BTHD qkv_mni_sharding",
    ed.AttentionOutput: "attention_weights attention_outputs",
    ed.AttentionImpl.create_stable_sharding: "self state_ps preserved_indices clone_ps dep tensor",
    ed.AttentionImpl.get_mode: "self q BTHD",
    ed.AttentionImpl.repeat_kv_heads: "k v num_reps",
    ed.AttentionRegistry.create: "impl_name metadata",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_arguments_are_those_of_the_documents(function):
    """In their order; what kvc adds comes behind."""
    found = list(inspect.signature(function).parameters)
    names = [each for each in SIGNATURES[function].split() if each != "self" or found[0] == "self"]
    assert found[: len(names)] == names
