"""Storage types: what encode() and decode() do is what a cache stores and reads."""

import numpy as np
import pytest

import kvc
from dlpack_producer import UINT, Producer

ml_dtypes = pytest.importorskip("ml_dtypes")

QUANTISED = ["q8_0", "q4_0", "int8", "nf4"]  # with stored scales
TYPES = ["f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", *QUANTISED]
ELEMENTS = {  # of codes, of scales, values that share a scale (of 64), bytes of 64 values
    "f32": (np.float32, None, 0, 256),
    "f16": (np.float16, None, 0, 128),
    "bf16": (ml_dtypes.bfloat16, None, 0, 128),
    "f8_e4m3": (ml_dtypes.float8_e4m3fn, None, 0, 64),
    "f8_e5m2": (ml_dtypes.float8_e5m2, None, 0, 64),
    "q8_0": (np.int8, np.float16, 32, 68),
    "q4_0": (np.uint8, np.float16, 32, 36),
    "int8": (np.int8, np.float32, 64, 68),
    "nf4": (np.uint8, np.float32, 64, 36),
}
ERROR = {  # of a value, as a share of the largest of its block
    **{"f32": 0, "f16": 2**-11, "bf16": 2**-8, "f8_e4m3": 2**-4, "f8_e5m2": 2**-3},
    **{"q8_0": 0.5 / 127 * 1.01, "q4_0": 1 / 8, "int8": 0.5 / 127 * 1.01, "nf4": 0.16},
}


def bits(array):
    """The bytes of an array or a view; None for none."""
    return None if array is None else np.array(array).tobytes()


@pytest.fixture
def vectors(random):
    return random.standard_normal((7, 2, 64), dtype=np.float32)


@pytest.fixture
def wide(make):
    """Creates caches of vectors of 64."""

    def create(**changes):
        return make(**{"head_dim": 64, "n_layers": 1, **changes})

    return create


def put(cache, k, v, start=0, sequence=0):
    cache.begin(np.arange(start, start + len(k)), sequence)
    for layer in range(cache.n_layers):
        cache.put(layer, k, v)


# ---- Codecs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_a_type_tells_how_its_vectors_lie(dtype):
    codes, scales, block, n_bytes = ELEMENTS[dtype]
    info = kvc.storage_info(dtype, 64)
    assert (info.dtype, info.code_dtype, info.scale_dtype) == (dtype, codes, scales)
    assert (info.block, info.bytes_per_row) == (block, n_bytes)
    stored = info.codes_per_row * np.dtype(codes).itemsize
    assert stored + info.scales_per_row * (np.dtype(scales).itemsize if scales else 0) == n_bytes
    assert kvc.storage_info(codes, 64) == info if scales is None else True


def test_nf4_has_a_choice_of_blocks():
    assert [kvc.storage_info("nf4", n).block for n in (16, 32, 48, 64, 96, 128)] == [
        16, 32, 16, 64, 32, 64,
    ]  # fmt: skip
    assert kvc.storage_info("nf4", 128, block=128).scales_per_row == 1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rotate", [False, True])
def test_vectors_come_back_within_the_error_of_the_type(vectors, dtype, rotate):
    if rotate and dtype not in QUANTISED:
        with pytest.raises(kvc.InvalidArgument, match=f"dtype is {dtype}, which gains nothing"):
            kvc.encode(vectors, dtype, rotate=True)
        return
    codes, scales = kvc.encode(vectors, dtype, rotate=rotate)
    assert codes.dtype == ELEMENTS[dtype][0]
    assert (scales is None) == (ELEMENTS[dtype][1] is None)
    found = kvc.decode(codes, scales, dtype, rotate=rotate)
    assert found.dtype == np.float32 and found.shape == vectors.shape
    # A rotation keeps lengths, and errors spread over a vector.
    largest = np.linalg.norm(vectors, axis=-1).max() if rotate else np.abs(vectors).max()
    assert np.abs(found - vectors).max() <= ERROR[dtype] * largest


@pytest.mark.parametrize("wrap", [np.asarray, memoryview, Producer])
def test_encode_takes_arrays_of_any_library_and_any_strides(vectors, wrap):
    codes, scales = kvc.encode(vectors, "q4_0")
    turned = np.ascontiguousarray(vectors.transpose(2, 1, 0)).transpose(2, 1, 0)
    for each in (vectors, turned):
        found = kvc.encode(wrap(each), "q4_0")
        assert bits(found[0]) == bits(codes) and bits(found[1]) == bits(scales)
    values = np.zeros((7, 2, 128), np.float32)[..., ::2]
    of_codes = wrap(codes) if wrap is not Producer else Producer(codes, UINT)
    assert kvc.decode(of_codes, wrap(scales), "q4_0", values=values) is values
    np.testing.assert_array_equal(values, kvc.decode(codes, scales, "q4_0"))


@pytest.mark.parametrize("dtype", ["f8_e4m3", "f8_e5m2"])
def test_f8_is_that_of_ml_dtypes(random, dtype):
    every = np.arange(256, dtype=np.uint8)
    kind = ELEMENTS[dtype][0]
    for scale in (1.0, 0.25, 3.0):
        expected = every.view(kind).astype(np.float32) * np.float32(scale)
        np.testing.assert_array_equal(kvc.decode(every, None, dtype, scale=scale), expected)
    values = np.frombuffer(random.bytes(1 << 20), np.uint32).view(np.float32)
    values = values[np.abs(values) <= ml_dtypes.finfo(kind).max]
    values = values[: len(values) // 64 * 64].reshape(-1, 64)
    codes, _ = kvc.encode(values, dtype)
    np.testing.assert_array_equal(codes.view(np.uint8), values.astype(kind).view(np.uint8))
    largest = float(ml_dtypes.finfo(kind).max)  # beyond it finite numbers saturate
    codes, _ = kvc.encode(np.array([1e30, -1e30], np.float32), dtype)
    assert codes.astype(np.float32).tolist() == [largest, -largest]


@pytest.mark.parametrize("dtype, block", [("q8_0", 34), ("q4_0", 18)])
def test_q8_0_and_q4_0_are_ggmls(random, dtype, block):
    gguf = pytest.importorskip("gguf")
    values = random.standard_normal((50, 96), dtype=np.float32) * np.float32(10) ** random.integers(
        -3, 4, (50, 1)
    ).astype(np.float32)
    codes, scales = kvc.encode(values, dtype)
    theirs = gguf.quantize(values, gguf.GGMLQuantizationType[dtype.upper()])
    blocks = theirs.reshape(50, 3, block)
    assert bits(blocks[..., :2]) == bits(scales)
    assert bits(blocks[..., 2:]) == bits(codes)
    np.testing.assert_array_equal(
        kvc.decode(codes, scales, dtype),
        gguf.dequantize(theirs, gguf.GGMLQuantizationType[dtype.upper()]),
    )


def test_rotation_spreads_an_outlier(random):
    values = random.standard_normal((20, 128), dtype=np.float32)
    values[:, 5] *= 50

    def error(rotate):
        codes, scales = kvc.encode(values, "q4_0", rotate=rotate)
        return np.square(kvc.decode(codes, scales, "q4_0", rotate=rotate) - values).mean()

    assert error(True) < error(False)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: kvc.encode(x, "q8"), kvc.DtypeError, "dtype 'q8' is not one of f32, .*, nf4"),
        (lambda x: kvc.encode(x, None), kvc.DtypeError, "is not one of"),
        (lambda x: kvc.encode(x[..., :40], "q4_0"), kvc.InvalidArgument, "multiples of 32"),
        (lambda x: kvc.encode(x, "q8_0", block=32), kvc.InvalidArgument, "only nf4 has a choice"),
        (lambda x: kvc.encode(x, "nf4", block=48), kvc.InvalidArgument, "16, 32, 64 or 128"),
        (lambda x: kvc.encode(x, "q8_0", scale=2), kvc.InvalidArgument, "it must be 1: only f8"),
        (lambda x: kvc.encode(x, "f8_e4m3", scale=0), kvc.InvalidArgument, "scale is 0; it must be"),
        (
            lambda x: kvc.encode(x, "f8_e4m3", scale=1e-35),
            kvc.InvalidArgument,
            r"it must be from 2\^-100",
        ),
        (
            lambda x: kvc.encode(x.view(np.uint16), "q8_0"),
            kvc.DtypeError,
            r"values is uint16, .*pass values.view\(numpy.float16\), or values.view\(ml_dtypes",
        ),
        (lambda x: kvc.encode(x.astype(int), "q8_0"), kvc.DtypeError, r"values.astype\(numpy.float"),
        (lambda x: kvc.encode(x.tolist(), "q8_0"), TypeError, r"numpy.asarray\(values, "),
        (lambda x: kvc.encode(np.float32(1), "q8_0"), kvc.ShapeError, "values has no dimensions"),
        (lambda x: kvc.decode(x, None, "q8_0"), kvc.DtypeError, "codes is f32, not i8"),
        (lambda x: kvc.decode([1], None, "q8_0"), TypeError, "codes must be an array .*, not list$"),
        (lambda x: kvc.decode(x > 0, None, "f32"), kvc.DtypeError, "pass what encode"),
        (lambda x: kvc.decode(*kvc.encode(x, "int8"), "f32"), kvc.DtypeError, "codes is i8, not f32"),
        (
            lambda x: kvc.decode(x, np.zeros((7, 2, 1), np.float32), "f32"),
            kvc.InvalidArgument,
            "scales must be None: f32 stores no scales",
        ),
        (
            lambda x: kvc.decode(*kvc.encode(x, "f8_e5m2"), "f8_e5m2", values=x.astype(float)),
            kvc.DtypeError,
            "values is float64; kvc writes float32, float16 or bfloat16",
        ),
    ],
)
def test_what_cannot_be_encoded_or_decoded_is_refused(vectors, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(vectors)
    assert "kvc_" not in str(caught.value) and "KVC_" not in str(caught.value)
