"""The short programs of examples/python print what they promise. (test_demo.py tests the demo.)"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import kvc

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(kvc.__file__)))
EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="outside the source tree")
@pytest.mark.parametrize(
    "name, output",
    [
        ("tree_drafts", r"156 tokens in (\d+) passes, .* the same as one by one"),
        ("shared_layers", r"6 layers, 2 with K and V of their own: .* prefill and decode agree"),
        ("life_of_a_cache", r"cells_used=260, cells_shared=48"),
        ("life_of_a_hybrid", r"wanted 60, continued at 50: .*\n.*: \[24, 48, 50, 74, 98\]"),
        ("easydel_layer", r"3 rows with \[0, 13, 7\] tokens of padding continue at \[30, 30, 30\]; .*alone"),
    ],
)
def test_an_example(name, output):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result
    found = re.search(output, result.stdout)
    assert found, result.stdout
    if found.groups():
        assert int(found[1]) < 80  # of 156: most drafts were right
