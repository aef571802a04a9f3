"""kvc.inspect and its command draw what a cache holds."""

import os
import pathlib
import subprocess
import sys

import pytest

import kvc
from kvc import kvc_capi

pytest.importorskip("matplotlib")

from kvc.inspect import FREE, SHARED, History, Snapshot, draw  # noqa: E402

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(kvc.__file__)))
LIFE = pathlib.Path(__file__).resolve().parents[3] / "examples" / "python" / "life_of_a_cache.py"


@pytest.fixture
def busy(make, fill):
    """A cache whose sequences share cells, slide, and have pending rotations."""
    cache = make(reach=20)
    cache.bind_rope()
    fill(cache, 12)
    cache.copy_prefix(0, 1, 8)
    fill(cache, 4, sequence=1)
    for _ in range(3):
        fill(cache, 16, sequence=2)
    cache.remove(2, 30, 34)
    return cache


def test_cells_match_the_statistics(busy):
    snapshot = Snapshot.of(busy)
    owner, pending = snapshot.cells()
    stats = busy.stats()
    assert (owner != FREE).sum() == stats.cells_used
    assert (owner == SHARED).sum() == stats.cells_shared == 8
    assert sorted(snapshot.sequences) == [0, 1, 2]
    assert (owner == 0).sum() == 4 and (owner == 1).sum() == 4
    info = busy.query(2)
    assert info.lost_below > 0 and (owner == 2).sum() == info.count
    assert pending.sum() == info.next - 30 and set(owner[pending]) == {2}


@pytest.mark.parametrize("cells", [1, 31, 5000])
def test_pools_of_any_size_are_drawn(make, fill, tmp_path, cells):
    cache = make(cells=cells, max_batch=1)
    fill(cache, 1)
    draw(cache).savefig(tmp_path / "cache.svg")


def test_pictures_change_nothing(busy, tmp_path):
    before = busy.digest(), busy.stats()
    history = History()
    history.sample(busy)
    figure = draw(busy, history)
    figure.savefig(tmp_path / "cache.svg")
    assert len(figure.axes) == 3 and len(draw(busy).axes) == 2
    assert f"of {busy.stats().cells} cells used, 8 shared" in figure.axes[0].get_title()
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == ["0", "1", "2"]
    assert (busy.digest(), busy.stats()) == before


def test_an_empty_cache(cache, tmp_path):
    draw(cache, History()).savefig(tmp_path / "cache.png")
    owner, pending = Snapshot.of(cache).cells()
    assert (owner == FREE).all() and not pending.any()


def test_notebooks_show_a_small_map(busy, make, fill):
    before = busy.digest()
    shown = busy._repr_html_()
    stats = busy.stats()
    assert f"{stats.cells_used} of {stats.cells} cells used, 8 shared" in shown
    assert shown.count("<rect") == stats.cells <= 512
    assert "sequence 2: " in shown and len(shown) < 80_000
    assert busy.digest() == before
    large = make(cells=100_000)
    fill(large, 20)
    assert "a square is 196 cells" in large._repr_html_()
    assert large._repr_html_().count("<rect") == -(-100_000 // 196) <= 512
    many = make(max_sequences=40)
    for sequence in range(12):
        fill(many, 1, sequence=sequence)
    assert "4 more" in many._repr_html_()


def test_notebooks_show_what_cannot_be_read_too(cache, monkeypatch):
    def busy(handle, *arguments):
        raise kvc.Busy("another thread is inside")

    for name in ("kvc_sequence_query", "kvc_cache_stats"):
        monkeypatch.setattr(kvc_capi, name, busy)
    assert "busy" in repr(cache)
    assert "busy" in cache._repr_html_() and "another thread is inside" in cache._repr_html_()
    monkeypatch.undo()
    cache.close()
    assert "closed" in cache._repr_html_() and "<rect" not in cache._repr_html_()


# ---- The command ---------------------------------------------------------------------------------

ONE_PASS = """
import sys, numpy as np, kvc
def pass_of(cache):
    with cache.forward([cache.query(0).next]):
        cache.put(0, np.ones((1, 1, 8), np.float32), np.ones((1, 1, 8), np.float32))
def make():
    return kvc.Cache(n_layers=1, n_kv_heads=1, head_dim=8, capacity=16)
"""


@pytest.fixture
def inspect(tmp_path):
    def run(program, *arguments, path=PACKAGES, output=("-o", tmp_path / "cache.svg")):
        if not isinstance(program, pathlib.Path):
            (tmp_path / "program.py").write_text(ONE_PASS + program)
            program = tmp_path / "program.py"
        command = [sys.executable, "-m", "kvc", "inspect", *output, program]
        return subprocess.run(
            [*map(str, command), *arguments],
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.skipif(not LIFE.exists(), reason="outside the source tree")
def test_a_program_is_drawn_and_twice_the_same(inspect, tmp_path):
    pictures = []
    for _ in range(2):
        result = inspect(LIFE)
        assert result.returncode == 0, result
        assert "cells_used=260" in result.stdout  # it ran as it does by itself
        pictures.append((tmp_path / "cache.svg").read_text())
    assert pictures[0] == pictures[1]
    for text in ("260 of 384 cells used, 48 shared", "memory over the run", "pending rotation"):
        assert text in pictures[0]


def test_every_cache_has_a_picture(inspect, tmp_path):
    result = inspect("a, b = make(), make(); pass_of(a); pass_of(b); a.close()")
    assert result.returncode == 0, result
    assert {path.name for path in tmp_path.glob("*.svg")} == {"cache.svg", "cache-2.svg"}


def test_a_program_gets_its_arguments_and_keeps_its_exit_code(inspect, tmp_path):
    result = inspect("pass_of(make()); print(sys.argv[1:]); sys.exit(7)", "-x", "--output", "y")
    assert result.returncode == 7 and "['-x', '--output', 'y']" in result.stdout
    assert (tmp_path / "cache.svg").exists()
    assert inspect("pass_of(make()); sys.exit('no')").returncode == 1


def test_what_cannot_be_drawn_is_reported(inspect, tmp_path):
    result = inspect("make()")
    assert result.returncode == 1 and "ended no pass" in result.stderr
    result = inspect(tmp_path / "nothing.py")
    assert result.returncode == 2 and "there is no program" in result.stderr
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    result = inspect("pass_of(make())", path=f"{tmp_path}{os.pathsep}{PACKAGES}")
    assert result.returncode == 2 and "pip install matplotlib" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "output, message",
    [
        ("cache", "the suffix of cache must be one of ."),
        ("cache.txt", "the suffix of cache.txt must be one of ."),
        ("none/cache.svg", "there is no folder "),
        ("folder.svg", "folder.svg cannot be written"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_program_runs(
    inspect, tmp_path, output, message
):
    (tmp_path / "folder.svg").mkdir()
    result = inspect("print('it ran'); pass_of(make())", output=("-o", output))
    assert result.returncode == 2 and message in result.stderr
    assert "it ran" not in result.stdout and "Traceback" not in result.stderr


@pytest.mark.parametrize("option", [["-o", "b.svg"], ["-ob.svg"], ["--output=b.svg"]])
def test_an_output_behind_the_program_is_the_programs_and_that_is_said(inspect, tmp_path, option):
    result = inspect("pass_of(make()); print(sys.argv[1:])", *option, output=())
    assert result.returncode == 0 and str(option) in result.stdout
    assert "is the program's; the picture goes to " in result.stderr
    assert (tmp_path / "cache.svg").exists() and not (tmp_path / "b.svg").exists()
    result = inspect("pass_of(make())", *option)  # here nobody can expect b.svg
    assert "is the program's" not in result.stderr


def test_a_program_that_changes_its_folder_leaves_the_picture_where_it_was_asked_for(
    inspect, tmp_path
):
    (tmp_path / "other").mkdir()
    result = inspect("import os; os.chdir('other'); pass_of(make())", output=("-o", "a.svg"))
    assert result.returncode == 0 and (tmp_path / "a.svg").exists()


def test_the_programs_own_errors_stay_its_own(inspect):
    result = inspect("raise ValueError('mine')")
    assert result.returncode == 1 and "ValueError: mine" in result.stderr


def test_versions_are_shown_for_reports():
    command = [sys.executable, "-m", "kvc", "--version"]
    environment = {**os.environ, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1"}
    shown = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    for part in (f"kvc {kvc.__version__} ", PACKAGES, kvc.build_info(), "Python 3.", "NumPy "):
        assert part in shown
    assert len(shown.splitlines()) == 3
