"""Messages about arguments name what came, what is taken and what to do, in the words of Python. (The
library's own messages have tests of their own.)"""

import ctypes
import pathlib
import re

import numpy as np
import pytest

import kvc
from dlpack_producer import BFLOAT, INT, Producer
from kvc._words import _METHODS, in_python

FLOATS = "float32, float16 or bfloat16"
K = np.zeros((2, 2, 16), np.float32)
Q = np.zeros((2, 4, 16), np.float32)
WRONG_ARRAYS = [
    (K.astype(float), kvc.DtypeError, f"k is float64; kvc takes {FLOATS}: convert with k.astype"),
    (K.astype(np.int64), kvc.DtypeError, "k is int64; kvc takes"),
    (K.astype(">f4"), kvc.DtypeError, "k is >f4; kvc takes"),
    (K.astype(bool), kvc.DtypeError, "k is bool; kvc takes"),
    (K.astype(complex), kvc.DtypeError, "k is complex128; kvc takes"),
    (K.astype(object), kvc.DtypeError, "k is object; kvc takes"),
    (K.astype("M8[s]"), kvc.DtypeError, r"k is datetime64\[s\]; kvc takes"),
    (K.astype(np.uint16), kvc.DtypeError, 'k is uint16, .* dtype="bf16" or dtype="f16"'),
    (memoryview(K.astype(float)), kvc.DtypeError, r"a buffer of format 'd'; .* numpy.asarray\(k,"),
    ((ctypes.c_double * 4)(), kvc.DtypeError, "a buffer of format '<d'; kvc takes"),
    (Producer(K.astype(float)), kvc.DtypeError, "k is float64; kvc takes"),
    (Producer(K.view(np.int32), INT), kvc.DtypeError, "k is int32; kvc takes"),
    (Producer(K.astype(bool), 6), kvc.DtypeError, "k is bool; kvc takes"),
    (Producer(K, BFLOAT), kvc.DtypeError, "k is bfloat32; kvc takes"),
    (Producer(K, 9), kvc.DtypeError, "k is a type of DLPack's number 9 with 32 bits; kvc takes"),
    (Producer(K, device=8), kvc.DeviceMismatch, "a Metal device, but .* on the CPU: copy it there"),
    (Producer(K, device=99), kvc.DeviceMismatch, "a device of DLPack's type 99"),
    (Producer(K, major=2), kvc.VersionMismatch, "DLPack 2, but this kvc reads DLPack 1 and older"),
    (K[::-1], kvc.ShapeError, r"-128 bytes, which runs backwards: .*ascontiguousarray\(k\)"),
    (
        K.tolist(),
        TypeError,
        r"k must be an array .*, not list: pass numpy.asarray\(k, numpy.float32\)",
    ),
    (None, TypeError, "k must be an array .*, not None$"),
    (3.0, TypeError, "k must be an array .*, not float$"),
]


@pytest.mark.parametrize(
    "array, error, message", WRONG_ARRAYS, ids=[each[2] for each in WRONG_ARRAYS]
)
def test_a_wrong_array(cache, array, error, message):
    cache.begin([0, 1])
    for _ in range(2):  # the second time nothing of the first is left
        with pytest.raises(error, match=message):
            cache.put(0, array, K)
    cache.abort()


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            dict(mask=np.zeros((2, 2), np.uint8)),
            kvc.DtypeError,
            r"mask is uint8; .* mask.view\(bool\)",
        ),
        (dict(mask=np.zeros((2, 2), np.float32)), kvc.DtypeError, "kvc takes bool: .* are a bias"),
        (dict(mask=np.zeros((2, 2), np.int64)), kvc.DtypeError, r"mask.astype\(bool\)"),
        (dict(bias=np.zeros((2, 2), bool)), kvc.DtypeError, f"bias is bool; kvc takes {FLOATS}"),
        (
            dict(lse=np.zeros((2, 4), np.float16)),
            kvc.DtypeError,
            "lse is float16; kvc writes float32:",
        ),
        (dict(weights=np.zeros(1)), kvc.DtypeError, "weights is float64; kvc writes float32:"),
        (dict(out=np.zeros((2, 4, 16))), kvc.DtypeError, f"out is float64; kvc writes {FLOATS}:"),
        (dict(out=np.zeros((2, 4, 16), np.float32)[::-1]), kvc.ShapeError, "runs backwards$"),
        (dict(out=b"bytes"), ValueError, "out is read-only, but the call writes to it"),
        (dict(q=None), TypeError, "q must be an array .*, not None"),
        (dict(q=[1.0]), TypeError, r"q must be an array .*, not list: pass numpy.asarray\(q,"),
    ],
)
def test_a_wrong_array_of_attention(cache, options, error, message):
    cache.begin([0, 1])
    cache.put(0, K, K)
    with pytest.raises(error, match=message):
        cache.attention(0, **{"q": Q, **options})
    with pytest.raises(
        kvc.DtypeError, match="into is float64; kvc writes float32, float16 or bool"
    ):
        cache.mask(0, np.zeros((2, 2)))
    cache.abort()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda c: c.put("0", K, K), TypeError, "layer must be an integer, not str"),
        (
            lambda c: c.put(2**40, K, K),
            kvc.InvalidArgument,
            "layer 1099511627776 is no integer of 32",
        ),
        (lambda c: c.begin([0, 0.5]), TypeError, r"positions\[1\] must be an integer, not float"),
        (lambda c: c.begin(3), TypeError, "positions must be a list or array of integers, not int"),
        (lambda c: c.begin([0, 2**40]), kvc.InvalidArgument, r"positions\[1\] 1099511627776 is no"),
        (
            lambda c: c.begin(np.array([0, 2**40])),
            kvc.InvalidArgument,
            r"positions\[1\] 1099511627776",
        ),
        (lambda c: c.begin([0, 1], [0]), kvc.InvalidArgument, "sequences has 1 .* positions has 2"),
        (
            lambda c: c.begin([0], 0.5),
            TypeError,
            "sequences must be .* one integer for all, not float",
        ),
        (lambda c: c.begin([0], sees_later=[3]), kvc.InvalidArgument, "token 3 of a batch of 1"),
        (lambda c: c.begin([0], sees_later=[0.0]), TypeError, "sees_later must hold integers"),
        (lambda c: c.begin([0], sees_later=[True]), TypeError, "must hold integers, not bool"),
        (lambda c: c.begin([0], sees_later=3), TypeError, "sees_later must be a list .*, not 3"),
        (lambda c: c.set_causal(3), TypeError, "sees_later must be a list or array of integers"),
        (lambda c: c.set_causal(["a"]), TypeError, r"sees_later\[0\] must be an integer, not str"),
        (lambda c: c.begin([0]) or c.set_causal([7]), kvc.InvalidArgument, r"sees_later\[0\] 7"),
        (
            lambda c: c.commit_prefix([0], [1, 2]),
            kvc.InvalidArgument,
            "keep has 2 .* sequences has 1",
        ),
        (lambda c: c.reorder([0, 1], [1]), kvc.InvalidArgument, "src has 1 entries, but dst has 2"),
        (lambda c: c.begin(sequence=0), TypeError, r"^Cache.begin\(\) got an unexpected"),
        (
            lambda c: c.bind_attention(4, layers=[0, 1]),
            TypeError,
            r"layers must be a layer, a range, a tuple \(begin, end\) or None for all, not list",
        ),
        (lambda c: c.bind_rope(layers=range(0, 2, 2)), kvc.InvalidArgument, "once for each layer"),
        (
            lambda c: c.bind_attention(4, layers=(0, 1, 2)),
            kvc.InvalidArgument,
            r"no \(begin, end\)",
        ),
        (lambda c: c.bind_attention(4, scale=None), TypeError, "scale must be a number, not None"),
        # float32 would make 0 of it, which is the default
        (lambda c: c.bind_attention(4, scale=1e-60), kvc.InvalidArgument, "scale is 1e-60, which"),
        (
            lambda c: c.bind_attention(4, softcap=1e39),
            kvc.InvalidArgument,
            r"softcap is 1e\+39, wh",
        ),
        (lambda c: c.bind_rope(base=10**400), kvc.InvalidArgument, "base is too large for float32"),
        (
            lambda c: c.bind_attention(4, alibi_slopes=[0, 1e39, 0, 0]),
            kvc.InvalidArgument,
            r"alibi_slopes\[1\] is inf",
        ),
        (lambda c: c.bind_attention(4, sinks="abcd"), TypeError, "sinks must hold 4 numbers"),
        (lambda c: c.bind_rope(base="x"), TypeError, "base must be a number, not 'x'"),
        (lambda c: kvc.Device(7), TypeError, 'name must be a string such as "cpu", not int'),
    ],
)
def test_a_wrong_number_or_list(cache, call, error, message):
    with pytest.raises(error, match=message):
        call(cache)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(n_layers="a"), TypeError, "n_layers must be an integer, not str"),
        (
            dict(capacity=2**40),
            kvc.InvalidArgument,
            "capacity 1099511627776 is no integer of 32 bits",
        ),
        (dict(dtype=np.float64), kvc.DtypeError, "^dtype 'float64' is not one of f32, f16, bf16"),
        (dict(dtype_v="f8"), kvc.DtypeError, "^dtype_v 'f8' is not one of"),
        (dict(sliding_window="a"), TypeError, "sliding_window must be an integer, not str"),
        (dict(reach=1.5), TypeError, "reach must be an integer, not float"),
        (dict(kind=[]), kvc.InvalidArgument, r"kind \[\] is not one of causal"),
        (dict(device="cpu"), TypeError, "device must be a kvc.Device or None, not str"),
    ],
)
def test_a_wrong_argument_of_a_cache(make, changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "call, shown",
    [
        (lambda c: c.put(0, K, K), "no pass is open: call begin() first"),
        (lambda c: c.begin([2]) or c.attention(1, Q[:1]), "call put() for it first"),
        (
            lambda c: c.begin([3]),
            "positions[0] is 3, but sequence 0 continues at 2, and strict=True",
        ),
        (lambda c: c.begin([2], 9), "sequences[0] 9 out of range [0, 4)"),
        (
            lambda c: c.begin([2], kvc.PADDING, sees_later=[0]),
            "sees_later/types/masked/carries_input[0] is not 0, but seq",
        ),
        (lambda c: c.begin([2], kvc.PADDING, sees_later=[0]), "but sequences[0] is kvc.PADDING"),
        (
            lambda c: c.begin([2], carries_input=[0]),
            "token 0 of the batch has carries_input, but this cache takes only sees_later and types",
        ),
        (lambda c: c.begin([2]) or c.set_causal([4]), "sees_later[0] 4 out of range [0, 1)"),
        (lambda c: c.begin([2]) or c.resume(0, 1), "with abort(), or with commit(), which"),
        (lambda c: c.copy_prefix(0, 1, -1), "length is -1;"),
        (lambda c: c.bind_attention(4, layers=(1, 9)), "layers[0] 1, layers[1] 9 are no range"),
        (lambda c: c.remove(0, 1, 0), "0 <= begin <= end (None: to the end)"),
        (lambda c: c.remove(0, 0, 1), "(bind_rope()), or create the cache with position_free=True"),
        (
            lambda c: c.bind_rope(),
            "call bind_rope() while the cache is empty, right after kvc.Cache(), or",
        ),
    ],
)
def test_the_librarys_messages_name_what_python_has(make, fill, call, shown):
    cache = make(strict=True)
    fill(cache, 2)
    with pytest.raises(kvc.Error) as caught:
        call(cache)
    message = str(caught.value)
    assert shown in message
    assert "kvc_" not in message and "KVC_" not in message and "shift function" not in message


def test_messages_about_new_kinds_are_in_the_words_of_python(make):
    def rows(**more):
        return make(kind="transformer", max_sequences=2, **more)

    lightning = make(kind="lightning", capacity=None)
    codes, _ = kvc.encode(np.zeros((2, 32), np.float32), "q4_0")
    for call, shown in (
        (lambda: rows().insert(rows(ring=True), 0), "ring is 0 here and 1 in other"),
        (lambda: lightning.bind_attention(4, softcap=3.0), "a lightning cache takes no softcap"),
        (lambda: kvc.decode(codes, None, "q4_0"), "scales is None: this call needs it"),
        (
            lambda: kvc.Operator("flash").forward(Q[None], K[None], K[None]),
            "pass max_rows and what follows it to kvc.Operator()",
        ),
    ):
        with pytest.raises(kvc.Error) as caught:
            call()
        assert shown in str(caught.value)
        assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)


def test_every_message_that_names_c_has_words_of_python():
    sources = pathlib.Path(__file__).resolve().parents[3]
    if not (sources / "core").is_dir():
        pytest.skip("outside the source tree")
    # Python fills descriptors and flags in itself, and binds no shift function.
    never_wrong = re.compile(
        r"kvc_\w+_desc|kvc_attention_extra|kvc_stats|kvc_sequence_info|kvc_storage_info|libkvc_cuda|kvc_bind_shift"
        r"|KVC_(EXTRA|BEGIN|CODEC|ROPE|TENSOR|TOKEN)_\w+|KVC_CACHE_(ZERO_ON_FREE|PREFAULT)|KVC_(CAUSAL|ENCODER|RECURRENT|LIGHTNING)"
        r"|KVC_(CPU_ISA|CUDA_PLUGIN|PLANTED_BUG|COUNT)|kvc_cuda_plugin_v1"
        r"|KVC_(ROWS_RESERVE|TRANSFORMER\w*|SLOPES_\w+)|kvc_device_info|kvc_metadata|KVC_METADATA_\w+"
        r"|KVC_(FEATURE_|FORWARD_|MODE_|OPERATOR_NO_SCAN|MODE_ALL|SET_)\w*|kvc_operator_(info|needs|functions)"
    )
    left = {}
    found = 0
    for path in [*sources.glob("core/**/*.[ch]pp"), *sources.glob("capi/src/*.[ch]pp")]:
        text = re.sub(r"^\s*(//.*|#include.*)$", "", path.read_text(encoding="utf-8"), flags=re.M)
        for literal in re.findall(r'"((?:[^"\\\n]|\\.)*)"', re.sub(r'"\s*\n\s*"', "", text)):
            names = re.findall(r"\w*(?:kvc_|KVC_)\w+", in_python(literal))
            found += in_python(literal) != literal
            unknown = [name for name in names if not never_wrong.fullmatch(name)]
            if unknown:
                left[path.name, literal] = unknown
    assert found > 15 and not left


@pytest.mark.parametrize("word", _METHODS)
def test_the_words_for_methods_are_methods(word):
    assert callable(getattr(kvc.Cache, word))


def test_words_are_replaced_whole():
    assert in_python("call kvc_put_attention, not kvc_put.") == "call put_attention(), not put()."
    for same in (
        "kvc_putting",
        "xposition[0]",
        "a position 3",
        "attention_len issue",
        "kvc_begin_x",
    ):
        assert in_python(same) == same


def test_what_has_ended(make, fill):
    cache = make()
    k, v, _ = fill(cache, 1)
    cache.begin([1])
    cache.put(0, k, v)
    view = cache.get(0)[0]
    cache.abort()
    with pytest.raises(kvc.BadState, match=r"call get\(\) in the next pass, or copy"):
        np.asarray(view)
    with kvc.Device(n_threads=1) as device:
        pass
    with pytest.raises(kvc.InvalidHandle, match="the device is closed: open another"):
        make(device=device)
    cache.close()
    with pytest.raises(kvc.InvalidHandle, match="the cache is closed: create another"):
        with cache:
            raise AssertionError("the block of a closed cache ran")


def test_a_full_hybrid_advises_what_each_of_its_caches_takes(model):
    """Its states lose no middle part with remove(), but a sequence can step back with resume()."""
    cache = model(
        kvc.Layer(kind="recurrent", state_shape=4), kvc.Layer(n_kv_heads=1, head_dim=4, capacity=4)
    )
    with cache.forward(range(3)):
        cache.state_put(0, "recurrent", np.zeros((1, 4), np.float32))
        cache.put(1, *[np.zeros((3, 1, 4), np.float32)] * 2)
    advice = r"free positions first, with resume\(\), or with remove\(\) where can_remove\(\) allows it"
    with pytest.raises(kvc.CacheFull, match=advice):
        cache.begin([3, 4])
