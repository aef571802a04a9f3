"""What the package shows of itself: versions, arguments, names, and nothing of SWIG."""

import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pytest

import kvc
from kvc import kvc_capi
from kvc._descriptors import _NEEDED, _ONLY

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(kvc.__file__)))


def test_versions():
    assert kvc.__version__.count(".") == 2
    assert kvc.__version__ in kvc.build_info()


@pytest.mark.parametrize("library, error", [("0, 1", "libkvc 0.1"), ("1, 2", "libkvc 1.2")])
def test_a_library_of_another_version_is_refused(library, error):
    program = f"""
import sys, types
capi = types.ModuleType("kvc.kvc_capi")
capi.KVC_VERSION_MAJOR, capi.KVC_VERSION_MINOR, capi.KVC_VERSION_PATCH = 0, 2, 0
capi.kvc_build_info = None
major, minor = {library}
capi.kvc_version_number = lambda: major << 16 | minor << 8
sys.modules["kvc.kvc_capi"] = capi
import kvc
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "ImportError" in result.stderr and f"built for libkvc 0.2, but {error}" in result.stderr


def test_no_proxy_reaches_a_caller(cache, fill):
    """Methods return types of Python, NumPy or this package."""
    fill(cache, 3)
    cache.begin([3])
    for layer in range(2):
        cache.put(layer, *[np.zeros((1, 2, 16), np.float32)] * 2)
    results = [
        cache.stats(),
        *astuple(cache.stats()),
        cache.query(0),
        *astuple(cache.query(0)),
        cache.runs(0, 0),
        *astuple(cache.runs(0, 0)[0]),
        cache.digest(),
        cache.get(0)[0],
        cache.mask(0),
        cache.can_resume(0, 1),
        cache.fits([4]),
        cache.can_remove(0),
        cache.history(0),
    ]
    for result in results:
        kind = type(result)
        assert kind.__module__ in ("builtins", "numpy", "kvc.info", "kvc.views"), kind
    cache.abort()


def test_arguments_are_shown_by_name_with_types_and_defaults():
    signature = inspect.signature(kvc.Cache)
    required = [each.name for each in signature.parameters.values() if each.default is each.empty]
    assert required == ["n_layers"]
    for parameter in signature.parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation != parameter.empty
        assert re.search(rf"\b{parameter.name}\b", kvc.Cache.__doc__), parameter
    assert inspect.signature(kvc.Cache.memory_bytes).parameters == signature.parameters
    of_some_kinds = {name: default for names, _ in _ONLY for name, default in names.items()}
    defaults = {name: signature.parameters[name].default for name in of_some_kinds}
    assert defaults == of_some_kinds


def test_type_checkers_know_the_arguments_of_each_kind():
    typed = pytest.importorskip("kvc._arguments")  # needs typing_extensions
    signature = inspect.signature(kvc.Cache).parameters
    common = {"n_layers", "kind", *typed.Common.__annotations__}
    found = set(common)
    for kind in ("causal", "encoder", "recurrent", "transformer", "lightning"):
        options = getattr(typed, kind.capitalize()).__annotations__
        for name, annotation in options.items():
            assert annotation.__forward_arg__ == signature[name].annotation, name
        required = {name for name, kinds in _NEEDED.items() if kind in kinds}
        takes = {name for names, kinds in _ONLY if kind in kinds for name in names}
        assert {*options, *required} | common == takes | common, kind
        found |= takes
    assert found == set(signature)


@pytest.mark.parametrize(
    "call, arguments, message",
    [
        (kvc.Cache, dict(n_layer=1), r"kvc.Cache\(\) has no argument 'n_layer': .* n_layers\?"),
        (kvc.Cache, dict(num_layers=1), "did you mean n_layers"),
        (kvc.Cache, dict(window=1), "did you mean sliding_window"),
        (kvc.Cache, dict(colour=1), "it takes n_layers, n_kv_heads, head_dim, capacity, kind"),
        (kvc.Cache, dict(n_layers=1), r"of kind 'causal' needs n_kv_heads, head_dim, capacity"),
        (kvc.Cache, dict(), r"kvc.Cache\(\) needs n_layers"),
        (kvc.Cache.memory_bytes, dict(n_layer=1), r"kvc.Cache.memory_bytes\(\) .* n_layers\?"),
        (kvc.Cache.memory_bytes, dict(n_layers=1), "needs n_kv_heads, head_dim"),
        (kvc.Device, dict(threads=1), r"kvc.Device\(\) .* did you mean n_threads"),
        (kvc.Cache.bind_rope, dict(theta=1.0), r"kvc.Cache.bind_rope\(\) has no argument 'theta'"),
        (kvc.Cache.bind_attention, dict(sink=1), "did you mean sinks"),
    ],
)
def test_a_wrong_name_of_an_argument_suggests_the_right_one(call, arguments, message):
    with pytest.raises(TypeError, match=message):
        call(**arguments)


@pytest.mark.parametrize("call", [kvc.Cache, kvc.Cache.memory_bytes])
def test_shapes_are_never_taken_by_position(call):
    with pytest.raises(
        TypeError, match="by name: n_layers=…, n_kv_heads=…, head_dim=…, capacity=…"
    ):
        call(2, 2, 16, 64)


def test_every_public_name_is_documented():
    for name in kvc.__all__:
        assert getattr(kvc, name).__doc__, name
    for name, member in inspect.getmembers(kvc.Cache):
        assert name.startswith("_") or member.__doc__, name


def test_every_function_of_the_library_is_wrapped():
    """Except those that Python does not need."""
    folder = pathlib.Path(__file__).resolve().parents[3] / "capi" / "include" / "kvc"
    if not folder.is_dir():
        pytest.skip("outside the source tree")
    # What experimental.h declares may change in any version.
    others = ("kvc_dlpack.h", "experimental.h")
    headers = "".join(path.read_text() for path in folder.glob("*.h") if path.name not in others)
    declared = set(re.findall(r"^KVC_API [^(]*?\b(kvc_\w+)\(", headers, re.M))
    assert len(declared) > 30
    the_wrapper_makes_tensors = {"kvc_tensor_dense"}
    would_call_back_into_python = {"kvc_bind_shift"}
    the_package_keeps_the_children = {"kvc_cache_child"}
    the_capsule_does_it = {"kvc_operator_destroy"}
    left_out = (
        the_wrapper_makes_tensors
        | would_call_back_into_python
        | the_package_keeps_the_children
        | the_capsule_does_it
    )
    assert declared - left_out <= set(dir(kvc_capi))


@pytest.fixture
def import_copy(tmp_path):
    """Imports a copy of the package without the files of a pattern; returns the last line printed."""

    def run(left_out):
        folder = pathlib.Path(kvc.__file__).parent
        shutil.copytree(folder, tmp_path / "kvc", ignore=shutil.ignore_patterns(left_out))
        environment = {**os.environ, "LD_LIBRARY_PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        result = subprocess.run(
            [sys.executable, "-c", "import kvc"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        return result.stderr.splitlines()[-1]

    return run


@pytest.mark.parametrize("part", ["kvc_capi.py", "_kvc_capi*.so"])
def test_a_source_folder_without_its_compiled_part_says_what_to_do(import_copy, part):
    shown = import_copy(part)
    assert "lacks the compiled part" in shown and "pip install -e ./bindings/python" in shown
    assert "LD_LIBRARY_PATH" not in shown


def test_an_extension_without_its_library_says_what_to_do(import_copy):
    if not list(pathlib.Path(kvc.__file__).parent.glob("libkvc.so*")):
        pytest.skip("this package is linked with an installed library")
    shown = import_copy("libkvc.so*")
    assert "libkvc.so" in shown and "LD_LIBRARY_PATH" in shown and "ldconfig" in shown
    assert "pip install -e" not in shown
