"""tools/draw_roofline reads what make bench prints and what docs/PERFORMANCE.md records."""

import importlib.machinery
import importlib.util
import pathlib

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
PRINTED = """
| figure | unit | median | min | max | pairs | time (median) | must | go for | reached |
|---|---|---|---|---|---|---|---|---|---|
| decode f16, 1k, batch 1 | % of limit | 61.8 | 37.5 | 76.7 | 21 | 0.2452 ms | 72 | 85 | MISSED |
| prefill f16, 512 on 4096 | % of FMA peak | 59.4 | 55.6 | 77.4 | 21 | 153.8 ms | 75 | 85 | MISSED |
| read | GB/s | 21 | 13.8 | 24.9 | 21 | 0 ms | 0 | 0 |  |
| multiply-add | GFLOP/s | 357 | 187 | 370 | 21 | 0 ms | 0 | 0 |  |
"""


@pytest.fixture(scope="module")
def tool():
    loader = importlib.machinery.SourceFileLoader(
        "draw_roofline", str(TOP / "tools" / "draw_roofline")
    )
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_both_tables_are_read(tool):
    printed = tool.figures(PRINTED)
    assert printed["decode f16, 1k, batch 1"] == (61.8, 37.5, 76.7, "% of limit")
    assert len(printed) == 4
    recorded = tool.figures((TOP / "docs" / "PERFORMANCE.md").read_text("utf-8"))
    assert len(recorded) > 40 and set(printed) <= set(recorded)


def test_operations_per_byte(tool):
    assert tool.operations_per_byte("decode f16, 1k, batch 1") == 4
    assert tool.operations_per_byte("decode f32, 16k, batch 1") == 2
    # One token on a history is a decode step.
    assert tool.operations_per_byte("prefill f16, 1 on 4096") == pytest.approx(4, rel=1e-3)
    assert tool.operations_per_byte("decode f16, 32 x 4k, generated together") == 4


OTHER_SHAPES = """
| decode f16, 32 x 4k, generated together | % of limit | 84.7 | 71.4 | 157 | 15 | 25.1 ms | 78 | 92 | must |
| decode f16, 32 x 4k, one after another | % of limit | 86.1 | 63.1 | 120 | 15 | 23.97 ms | 0 | 0 | |
| decode f16, 4k, heads of 64 | % of limit | 83.6 | 57.1 | 896 | 15 | 0.4428 ms | 0 | 0 | |
| prefill f16, 512 on 512, 7 query heads per KV head | % of FMA peak | 53.6 | 43.6 | 66.2 | 15 | 19 ms | 0 | 0 | |
| decode f16, 32 sequences on one 4k prefix | x of one alone | 11.4 | 7.71 | 15.6 | 15 | 10.18 ms | 0 | 0 | |
| decode f16, 4k, batch 1 | x of one alone | 1.2 | 1 | 1.5 | 15 | 0.8 ms | 0 | 0 | |
| decode 4k: window | x plain | 0.956 | 0.795 | 1.39 | 15 | 0.8204 ms | 1.25 | 1.1 | go |
"""


def test_other_shapes_and_other_units_are_left_out(tool):
    """Their operations per byte are others, and a ratio is no share of a limit."""
    found = tool.figures(PRINTED.rstrip() + OTHER_SHAPES)
    assert len(found) == 11
    usual = ["decode f16, 1k, batch 1", "prefill f16, 512 on 4096"]
    assert tool.drawn(found) == [*usual, "decode f16, 32 x 4k, generated together"]
    recorded = tool.drawn(tool.figures((TOP / "docs" / "PERFORMANCE.md").read_text("utf-8")))
    assert len(recorded) >= 9 and set(usual) <= set(recorded)
    assert not [name for name in recorded if "head" in name or "prefix" in name]
    labels = [text.get_text() for text in tool.draw(found).legends[0].get_texts()]
    assert [label.split(":")[0] for label in labels] == tool.drawn(found)


def test_a_picture(tool, tmp_path, monkeypatch):
    for name, text in (
        ("printed", PRINTED),
        ("recorded", (TOP / "docs" / "PERFORMANCE.md").read_text("utf-8")),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        monkeypatch.setattr(
            "sys.argv", ["draw_roofline", str(tmp_path / name), str(tmp_path / f"{name}.svg")]
        )
        tool.main()
        assert "decode f16, 1k, batch 1" in (tmp_path / f"{name}.svg").read_text("utf-8")


def test_a_table_without_limits_is_refused(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / "table").write_text(PRINTED.replace("| read |", "| other |"), "utf-8")
    monkeypatch.setattr(
        "sys.argv", ["draw_roofline", str(tmp_path / "table"), str(tmp_path / "x.svg")]
    )
    with pytest.raises(SystemExit):
        tool.main()
    assert "no figure named read" in capsys.readouterr().err
