"""The programs that the manual shows run as they stand."""

import pathlib
import re
import textwrap

import pytest

import kvc

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def blocks(text):
    """The indented blocks of a text."""
    return [
        textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.M)
    ]


def programs(text):
    """Those blocks that create a cache."""
    return [block for block in blocks(text) if re.search(r"kvc\.Cache|init_cache", block)]


@pytest.mark.parametrize("program", programs(README.read_text(encoding="utf-8")))
def test_a_program_of_the_readme_runs_and_leaves_no_operator(program):
    names = [info.name for info in kvc.operators()]
    exec(compile("import kvc, numpy as np\n" + program, "README.md", "exec"), {})
    assert [info.name for info in kvc.operators()] == names


def test_the_program_of_the_package_runs():
    (program,) = programs(kvc.__doc__)
    exec(compile(program, "kvc", "exec"), {})
