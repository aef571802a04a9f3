"""examples/python/gguf_file.py beside the reader of the package gguf."""

import pathlib

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

DEMO = pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"
TYPES = ["F32", "F16", "BF16", "Q4_1", "Q5_0", "Q8_0"]


@pytest.fixture
def gguf_file(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    import gguf_file

    return gguf_file


@pytest.fixture
def path(tmp_path):
    """A file with metadata of every type, and a tensor of each of TYPES."""
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    for bits in (8, 16, 32, 64):
        getattr(writer, f"add_uint{bits}")(f"uint{bits}", (1 << bits) - 1)
        getattr(writer, f"add_int{bits}")(f"int{bits}", -(1 << (bits - 1)))
    writer.add_float32("float32", 0.1)
    writer.add_float64("float64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "é 漢")
    writer.add_array("strings", ["", "a", "é"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.5])
    writer.add_array("bools", [True, False])
    random = np.random.default_rng(2)
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        values = random.standard_normal((3, 5, 64), dtype=np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "all.gguf"


def test_metadata_and_tensors_are_those_that_gguf_reads(gguf_file, path):
    file, reader = gguf_file.GgufFile(path), gguf.GGUFReader(path)
    compared = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert len(compared) >= 16
    for key in compared:
        assert file.field(key) == reader.fields[key].contents(), key
    assert [tensor.name for tensor in reader.tensors] == TYPES
    for tensor in reader.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert file.tensor(tensor.name).dtype == np.float32
        np.testing.assert_array_equal(file.tensor(tensor.name), expected, err_msg=tensor.name)


def test_what_is_not_there(gguf_file, path):
    file = gguf_file.GgufFile(path)
    assert "F32" in file and "other" not in file
    assert file.field("other", 7) == 7
    with pytest.raises(gguf_file.DemoError, match="no metadata field other"):
        file.field("other")
    with pytest.raises(gguf_file.DemoError, match="no tensor other"):
        file.tensor("other")


def test_a_file_cut_anywhere_is_refused(gguf_file, path, tmp_path):
    content, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for size in [*range(0, 1500, 7), len(content) - 100]:
        cut.write_bytes(content[:size])
        with pytest.raises(gguf_file.DemoError, match="not a whole GGUF file"):
            gguf_file.GgufFile(cut)


def test_sizes_that_no_file_has_are_refused(gguf_file, path, tmp_path):
    content, broken = bytearray(path.read_bytes()), tmp_path / "broken.gguf"
    for at in (4, 8, 16, 24):  # version, tensors, fields, the size of the first key
        changed = bytearray(content)
        changed[at : at + 8] = b"\xff" * 8
        broken.write_bytes(changed)
        with pytest.raises(gguf_file.DemoError, match="not a whole GGUF file"):
            gguf_file.GgufFile(broken)
