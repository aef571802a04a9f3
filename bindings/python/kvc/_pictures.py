"""The panels of a picture of a cache, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, List, Tuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .info import EncoderInput, SequenceInfo, Stats
from .inspect import FREE, SHARED, WITH_POSITIONS, WITH_STATES, Snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .inspect import Marks, Owners

_FREE_COLOUR, _SHARED_COLOUR, _GONE_COLOUR = "#f2f2f2", "#444444", "#d9d9d9"
_USED_COLOUR, _BACK_COLOUR = "#7fb3d5", "#c0392b"
_PENDING = "////"
_ROWS = 32  # of the picture of the pool, approximately
_Segment = Tuple[int, int, int, bool]  # begin, end, owner, whether a rotation is pending
_Panel = Tuple[float, Callable[["Axes"], None]]  # its height and what draws it


def figure_of(snapshot: Snapshot, samples: List[Stats]) -> Figure:
    """What the memory holds, what the sequences hold, and, with samples, the memory over the run."""
    panels = {
        **dict.fromkeys(WITH_POSITIONS, _positions),
        **dict.fromkeys(WITH_STATES, _states),
        "encoder": _encoder,
        "wrapper": _wrapper,
    }
    drawn = panels[snapshot.kind](snapshot)
    if samples:
        drawn.append((1.8, lambda axes: _draw_history(axes, snapshot, samples)))
    heights = [height for height, _ in drawn]
    figure = Figure(figsize=(9, sum(heights) + 1.2), layout="constrained")
    for axes, (_, draw) in zip(figure.subplots(len(drawn), height_ratios=heights), drawn):
        draw(axes)
    figure.legend(handles=_legend(snapshot), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _positions(snapshot: Snapshot) -> List[_Panel]:
    owner, pending = snapshot.cells()
    return [
        (3.0, lambda axes: _draw_pool(axes, snapshot, owner, pending)),
        (_height(len(snapshot.sequences)), lambda axes: _draw_sequences(axes, snapshot, owner)),
    ]


def _encoder(snapshot: Snapshot) -> List[_Panel]:
    rows = [(str(sequence), snapshot, sequence) for sequence in snapshot.sequences]
    return [
        (3.0, lambda axes: _draw_slots(axes, snapshot)),
        (_height(len(rows)), lambda axes: _draw_time(axes, rows)),
    ]


def _states(snapshot: Snapshot) -> List[_Panel]:
    rows = [(str(sequence), snapshot, sequence) for sequence in snapshot.sequences]
    return [
        (0.9, lambda axes: _draw_memory(axes, snapshot, [("slots", snapshot)])),
        (_height(len(rows)), lambda axes: _draw_time(axes, rows)),
    ]


def _wrapper(snapshot: Snapshot) -> List[_Panel]:
    children = list(enumerate(snapshot.children))
    rows = [
        (f"{sequence}: child {i}, {child.kind}", child, sequence)
        for sequence in snapshot.sequences
        for i, child in children
    ]
    memory = [(f"child {i}, {child.kind}", child) for i, child in children]

    def draw_time(axes: Axes) -> None:
        _draw_time(axes, rows)
        _draw_steps_back(axes, snapshot)

    return [
        (_height(len(memory)), lambda axes: _draw_memory(axes, snapshot, memory)),
        (_height(len(rows)), draw_time),
    ]


def _height(rows: int) -> float:
    return 0.6 + 0.3 * max(1, rows)


def _colour(owner: int) -> Any:
    if owner == SHARED:
        return _SHARED_COLOUR
    return colormaps["tab20"](owner * 2 % 20 + owner // 10 % 2)


def _summary(snapshot: Snapshot) -> str:
    stats = snapshot.stats
    storage = f"\n{snapshot.storage}" if snapshot.storage else ""
    return f"{stats.bytes / 1e6:.1f} MB; {stats.state} after {stats.passes} passes{storage}"


# ---- Cells ---------------------------------------------------------------------------------------


def _segments(owner: Owners, pending: Marks, begin: int) -> List[_Segment]:
    """Neighbouring cells that are drawn alike, counted from `begin`; free cells are left out."""
    differs = (owner[1:] != owner[:-1]) | (pending[1:] != pending[:-1])
    edges = [0, *(np.flatnonzero(differs) + 1).tolist(), len(owner)]
    return [
        (begin + start, begin + end, int(owner[start]), bool(pending[start]))
        for start, end in zip(edges, edges[1:])
        if owner[start] != FREE
    ]


def _bar(axes: Axes, row: float, segment: _Segment, height: float) -> None:
    begin, end, owner, pending = segment
    axes.broken_barh(
        [(begin, end - begin)],
        (row - height / 2, height),
        facecolor=_colour(owner),
        edgecolor="white",
        linewidth=0.4,
        hatch=_PENDING if pending else None,
    )


def _draw_pool(axes: Axes, snapshot: Snapshot, owner: Owners, pending: Marks) -> None:
    stats = snapshot.stats
    width = max(32, -(-stats.cells // (_ROWS * 32)) * 32)
    for row, begin in enumerate(range(0, stats.cells, width)):
        end = min(begin + width, stats.cells)
        axes.broken_barh([(0, end - begin)], (row - 0.45, 0.9), facecolor=_FREE_COLOUR)
        for segment in _segments(owner[begin:end], pending[begin:end], 0):
            _bar(axes, row, segment, 0.9)
    rows = -(-stats.cells // width)
    axes.set(
        xlim=(0, width), ylim=(rows - 0.4, -0.6), xlabel="cell", ylabel=f"rows of {width} cells"
    )
    axes.set_yticks([0, rows - 1] if rows > 1 else [0])
    axes.set_yticklabels([str(int(row) * width) for row in axes.get_yticks()])
    axes.set_title(
        f"{stats.cells_used} of {stats.cells} cells used, {stats.cells_shared} shared; "
        f"{_summary(snapshot)}",
        fontsize=10,
    )


def _draw_slots(axes: Axes, snapshot: Snapshot) -> None:
    """A row for each slot of an encoder cache."""
    owner, pending = snapshot.cells()
    width = snapshot.slot_cells
    slots = len(owner) // width
    held = owner.reshape(slots, width)[:, 0]
    for row in range(slots):
        axes.broken_barh([(0, width)], (row - 0.4, 0.8), facecolor=_FREE_COLOUR)
        begin, end = row * width, (row + 1) * width
        for segment in _segments(owner[begin:end], pending[begin:end], 0):
            _bar(axes, row, segment, 0.8)
    axes.set(
        xlim=(0, width), ylim=(slots - 0.4, -0.6), xlabel="position in the input", ylabel="slot"
    )
    axes.set_yticks(range(slots) if slots <= 16 else [0, slots - 1])
    axes.set_title(
        f"{(held != FREE).sum()} of {slots} slots hold inputs, {(held == SHARED).sum()} shared; "
        f"{_summary(snapshot)}",
        fontsize=10,
    )


def _draw_memory(axes: Axes, whole: Snapshot, parts: List[Tuple[str, Snapshot]]) -> None:
    """How full each part is, as a share of it."""
    for row, (_, part) in enumerate(parts):
        stats = part.stats
        unit = "slots" if part.kind in WITH_STATES else "cells"
        for cells, colour in (
            (stats.cells, _FREE_COLOUR),
            (stats.cells_used, _USED_COLOUR),
            (stats.cells_shared, _SHARED_COLOUR),
        ):
            axes.broken_barh([(0, cells / stats.cells)], (row - 0.4, 0.8), facecolor=colour)
        axes.text(
            0.99,
            row,
            f"{stats.cells_used} of {stats.cells} {unit}, {stats.bytes / 1e6:.1f} MB"
            + (f"; {part.storage}" if part.storage else ""),
            ha="right",
            va="center",
            fontsize=8,
        )
    axes.set(xlim=(0, 1), ylim=(len(parts) - 0.4, -0.6), xlabel="share of the memory")
    axes.set_yticks(range(len(parts)))
    axes.set_yticklabels([label for label, _ in parts])
    axes.set_title(f"{whole.kind}: {_summary(whole)}", fontsize=10)


# ---- Sequences -----------------------------------------------------------------------------------


def _draw_sequences(axes: Axes, snapshot: Snapshot, owner: Owners) -> None:
    longest = 1
    for row, (info, runs) in enumerate(snapshot.sequences.values()):
        longest = max(longest, info.next, info.lost_below)
        axes.broken_barh(
            [(0, info.lost_below)], (row - 0.1, 0.2), facecolor=_GONE_COLOUR, edgecolor="none"
        )
        for run in runs:
            cells = owner[run.cell : run.cell + run.length]
            for segment in _segments(cells, np.full(len(cells), run.offset != 0), run.position):
                _bar(axes, row, segment, 0.7)
    count = max(1, len(snapshot.sequences))
    axes.set(xlim=(0, longest), ylim=(count - 0.4, -0.6), xlabel="position", ylabel="sequence")
    axes.set_yticks(range(len(snapshot.sequences)))
    axes.set_yticklabels([str(sequence) for sequence in snapshot.sequences])


def _draw_time(axes: Axes, rows: List[Tuple[str, Snapshot, int]]) -> None:
    """What caches of any kind hold of sequences, on the time line of each."""
    longest = 1
    for row, (_, snapshot, sequence) in enumerate(rows):
        if sequence in snapshot.sequences:
            info, runs = snapshot.sequences[sequence]
            longest = max(longest, info.next, info.lost_below)
            axes.broken_barh([(0, info.next)], (row - 0.06, 0.12), facecolor=_GONE_COLOUR)
            for run in runs if snapshot.kind in WITH_POSITIONS else []:
                end = run.position + run.length
                _bar(axes, row, (run.position, end, sequence, run.offset != 0), 0.7)
            if sequence in snapshot.inputs:
                _draw_input(axes, row, sequence, snapshot.inputs[sequence], info.next)
            if snapshot.kind in WITH_STATES:
                _draw_states(axes, row, sequence, snapshot.checkpoints[sequence], info)
    count = max(1, len(rows))
    axes.set(
        xlim=(0, longest * 1.03), ylim=(count - 0.4, -0.6), xlabel="position", ylabel="sequence"
    )
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([label for label, _, _ in rows])


def _draw_input(axes: Axes, row: int, sequence: int, seen: EncoderInput, end: int) -> None:
    """Which tokens see the input, and the one that carried it."""
    colour, begin = _colour(sequence), seen.position
    axes.broken_barh([(begin, end - begin)], (row - 0.35, 0.7), facecolor=colour, alpha=0.4)
    axes.plot([begin], [row], ">", color=colour, markersize=7, clip_on=False)
    words = f"input of {seen.length}"
    axes.annotate(words, (begin, row), (8, 0), textcoords="offset points", va="center", fontsize=7)


def _draw_states(
    axes: Axes, row: int, sequence: int, places: List[int], info: SequenceInfo
) -> None:
    """The checkpoints of a sequence, and its state."""
    style: Any = {"color": _colour(sequence), "markersize": 7, "clip_on": False}
    if places:  # a line without points would be laid out as one at the corner of the figure
        axes.plot(places, [row] * len(places), "d", **style)
    axes.plot([info.next], [row], "s", fillstyle="none" if info.approximate else "full", **style)


def _draw_steps_back(axes: Axes, snapshot: Snapshot) -> None:
    """Where each sequence of a wrapper can step back to, and the children that hold it there."""
    height = len(snapshot.children)
    right = axes.get_xlim()[1]
    for index, (sequence, (info, _)) in enumerate(snapshot.sequences.items()):
        place, holders = snapshot.back.get(sequence, 0), snapshot.holders(sequence)
        top = index * height - 0.5
        axes.plot([place, place], [top, top + height], color=_BACK_COLOUR, linestyle="--")
        axes.axhline(top + height, color=_GONE_COLOUR, linewidth=0.5)
        words = f"back to {place}"
        if holders:
            words += f": held by child {', '.join(map(str, holders))}"
        is_short = info.next < 0.7 * right  # leaves room for words behind it
        axes.annotate(
            words,
            (info.next if is_short else place, top + height - 0.1),
            (8 if is_short else -3, 0),
            textcoords="offset points",
            ha="left" if is_short else "right",
            va="bottom",
            fontsize=7,
            color=_BACK_COLOUR,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )


# ---- The run -------------------------------------------------------------------------------------


def _draw_history(axes: Axes, snapshot: Snapshot, samples: List[Stats]) -> None:
    shared = np.array([stats.cells_shared for stats in samples])
    used = np.array([stats.cells_used for stats in samples])
    cells = max(stats.cells for stats in samples)
    at = np.arange(len(samples))
    kinds = {snapshot.kind, *(child.kind for child in snapshot.children)} - {"wrapper"}
    units = ["slots" if kind in WITH_STATES else "cells" for kind in kinds]
    unit = " and ".join(sorted(set(units)))
    axes.fill_between(at, 0, cells, color=_FREE_COLOUR, step="post", linewidth=0)
    axes.fill_between(at, 0, used, color=_USED_COLOUR, step="post", linewidth=0)
    axes.fill_between(at, 0, shared, color=_SHARED_COLOUR, step="post", linewidth=0)
    axes.set(xlim=(0, max(1, len(samples) - 1)), ylim=(0, cells), xlabel="sample", ylabel=unit)
    axes.set_title("memory over the run: shared, used, free", fontsize=10)


def _legend(snapshot: Snapshot) -> List[Any]:
    shown = list(snapshot.sequences)[:10]
    kinds = {snapshot.kind, *(child.kind for child in snapshot.children)}

    def marker(shape: str, label: str) -> Line2D:
        return Line2D([], [], color="#666666", marker=shape, linestyle="none", label=label)

    marks: List[Any] = [
        *(Patch(facecolor=_colour(each), label=f"sequence {each}") for each in shown),
        Patch(facecolor=_SHARED_COLOUR, label="shared"),
        Patch(facecolor=_FREE_COLOUR, edgecolor="#aaaaaa", label="free"),
    ]
    if kinds & set(WITH_POSITIONS):
        marks.append(Patch(facecolor=_GONE_COLOUR, label="slid out"))
        marks.append(
            Patch(facecolor="white", edgecolor="black", hatch=_PENDING, label="pending rotation")
        )
    if "encoder" in kinds:
        marks.append(marker(">", "token that carried the input"))
    if kinds & set(WITH_STATES):
        marks += [marker("d", "checkpoint"), marker("s", "state")]
    if snapshot.children:
        marks.append(Line2D([], [], color=_BACK_COLOUR, linestyle="--", label="can step back to"))
    return marks
