"""What the build of the package says before it builds anything."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

TREE = pathlib.Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
    not (TREE / "bindings" / "python" / "setup.py").exists(), reason="outside the source tree"
)


@pytest.fixture
def build(tmp_path):
    """Compiles the extension as pip does, in the folder of setup.py; returns what it printed."""

    def run(folder=TREE / "bindings" / "python", **environment):
        result = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "-t", tmp_path / "t", "-b", tmp_path / "b"],
            cwd=folder,
            env={**os.environ, "PWD": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        return result.stderr.splitlines()[-1]

    return run


def test_a_relative_build_folder_begins_where_the_user_is(build, tmp_path):
    wanted = tmp_path / "build" / "release" / "lib" / "libkvc.so"
    assert f"there is no {wanted}: build it" in build(KVC_BUILD_DIR="build/release")


@pytest.mark.parametrize(
    "choice, missing, packages",
    [
        (
            dict(KVC_BUILD_DIR="build"),
            "missing: no-such-cc, swig (",
            "(Debian: apt-get install g++ swig)",
        ),
        (
            dict(KVC_SYSTEM="1", KVC_BUILD_DIR=""),
            "missing: no-such-cc, swig, pkg-config (",
            "(Debian: apt-get install g++ swig pkg-config)",
        ),
        (
            dict(KVC_SYSTEM="", KVC_BUILD_DIR=""),
            "missing: no-such-cc, swig, c++, cmake, ninja",
            "(Debian: apt-get install g++ swig cmake ninja-build",
        ),
    ],
)
def test_all_missing_tools_are_named_in_one_line(build, tmp_path, choice, missing, packages):
    shown = build(PATH=str(tmp_path), CC="no-such-cc", CXX="", **choice)
    assert missing in shown and packages in shown


def test_outside_the_tree_pkg_config_is_needed_too(build, tmp_path):
    folder = shutil.copytree(TREE / "bindings" / "python", tmp_path / "alone" / "a" / "python")
    for choice in (dict(KVC_BUILD_DIR="build"), dict(KVC_BUILD_DIR="")):
        shown = build(folder, PATH=str(tmp_path), CC="no-such-cc", KVC_SYSTEM="", **choice)
        assert "missing: no-such-cc, swig, pkg-config (" in shown


@pytest.mark.parametrize(
    "generator, makes", [("Unix Makefiles", "Makefile"), ("Ninja", "build.ninja")]
)
def test_make_keeps_the_generator_that_pip_chose(tmp_path, generator, makes):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(empty NONE)\n"
    )
    (tmp_path / "tools").mkdir()
    configure = shutil.copy(TREE / "tools" / "configure", tmp_path / "tools")
    folder = tmp_path / "build" / "release"
    pip = ["cmake", "-S", tmp_path, "-B", folder, "-G", generator]
    for command in (pip, [configure, "build/release"]):
        subprocess.run(command, capture_output=True, check=True)
    assert (folder / makes).exists()
