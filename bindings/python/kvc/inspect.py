"""Pictures of a cache: its cells, its sequences, and its memory over a run.

    python -m kvc inspect -o cache.svg program.py …     # runs a program and draws its caches

    import kvc.inspect
    history = kvc.inspect.History()
    history.sample(cache)                               # after each pass, or as often as you like
    kvc.inspect.draw(cache, history).savefig("cache.svg")

Drawing needs matplotlib: `pip install matplotlib`. It changes nothing in the cache and uses its
public methods only (query, runs, stats).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Union

import numpy as np

from .cache import Cache
from .info import Run, SequenceInfo, Stats

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Owners = npt.NDArray[np.int64]  # of each cell: a sequence, FREE or SHARED
    Marks = npt.NDArray[np.bool_]

__all__ = ["History", "Snapshot", "draw"]

FREE, SHARED = -1, -2
_FREE_COLOUR, _SHARED_COLOUR, _GONE_COLOUR = "#f2f2f2", "#444444", "#d9d9d9"
_PENDING = "////"
_ROWS = 32  # of the picture of the pool, approximately
_Segment = Tuple[int, int, int, bool]  # begin, end, owner, whether a rotation is pending


@dataclass(frozen=True)
class Snapshot:
    """What a cache holds at one moment."""

    stats: Stats
    sequences: Dict[int, Tuple[SequenceInfo, List[Run]]]
    """those that hold positions, or lost positions because their window slid"""

    @staticmethod
    def of(cache: Cache, layer: int = 0) -> Snapshot:
        """The cells of one layer. Raises InvalidHandle (closed), InvalidArgument, Busy."""
        sequences = {}
        for sequence in range(cache.max_sequences):
            info = cache.query(sequence)
            if info.count or info.lost_below:
                sequences[sequence] = (info, cache.runs(layer, sequence))
        return Snapshot(cache.stats(), sequences)

    def cells(self) -> Tuple[Owners, Marks]:
        """For each cell of the pool: the sequence that holds it (or FREE, SHARED), and whether its
        keys have a pending rotation in one of its sequences."""
        owner = np.full(self.stats.cells, FREE, dtype=np.int64)
        pending = np.zeros(self.stats.cells, dtype=bool)
        for sequence, (_, runs) in self.sequences.items():
            for run in runs:
                cells = slice(run.cell, run.cell + run.length)
                owner[cells] = np.where(owner[cells] == FREE, sequence, SHARED)
                pending[cells] |= run.offset != 0
        return owner, pending


@dataclass
class History:
    """How full a cache was, sample by sample."""

    samples: List[Stats] = field(default_factory=list)

    def sample(self, cache: Cache) -> None:
        """Appends what cache.stats() returns now."""
        self.samples.append(cache.stats())


def draw(what: Union[Cache, Snapshot], history: Optional[History] = None) -> Figure:
    """Draws a cache, and its memory over a run if there is a history.

    Top: the pool, cell after cell, row after row. Below: what each sequence holds by position, and
    what slid out of its window. Each sequence has a colour, and shared cells are dark. Hatched keys
    have a pending rotation because their positions have moved.

    Returns a matplotlib Figure; its `savefig` writes the file.
    """
    from matplotlib.figure import Figure

    snapshot = Snapshot.of(what) if isinstance(what, Cache) else what
    samples = history.samples if history else []
    heights = [3.0, 0.6 + 0.3 * max(1, len(snapshot.sequences))] + ([1.8] if samples else [])
    figure = Figure(figsize=(9, sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(len(heights), height_ratios=heights)
    owner, pending = snapshot.cells()
    _draw_pool(axes[0], snapshot, owner, pending)
    _draw_sequences(axes[1], snapshot, owner)
    if samples:
        _draw_history(axes[2], samples)
    figure.legend(handles=_legend(snapshot), loc="outside lower center", ncols=6, fontsize=8)
    return figure


# ---- Parts of a picture --------------------------------------------------------------------------


def _colour(owner: int) -> Any:
    from matplotlib import colormaps

    if owner == SHARED:
        return _SHARED_COLOUR
    return colormaps["tab20"](owner * 2 % 20 + owner // 10 % 2)


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
        f"{stats.bytes / 1e6:.1f} MB; {stats.state} after {stats.passes} passes",
        fontsize=10,
    )


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


def _draw_history(axes: Axes, samples: List[Stats]) -> None:
    shared = np.array([stats.cells_shared for stats in samples])
    used = np.array([stats.cells_used for stats in samples])
    cells = max(stats.cells for stats in samples)
    at = np.arange(len(samples))
    axes.fill_between(at, 0, cells, color=_FREE_COLOUR, step="post", linewidth=0)
    axes.fill_between(at, 0, used, color="#7fb3d5", step="post", linewidth=0)
    axes.fill_between(at, 0, shared, color=_SHARED_COLOUR, step="post", linewidth=0)
    axes.set(xlim=(0, max(1, len(samples) - 1)), ylim=(0, cells), xlabel="sample", ylabel="cells")
    axes.set_title("memory over the run: shared, used, free", fontsize=10)


def _legend(snapshot: Snapshot) -> List[Any]:
    from matplotlib.patches import Patch

    shown = list(snapshot.sequences)[:10]
    return [
        *(Patch(facecolor=_colour(each), label=f"sequence {each}") for each in shown),
        Patch(facecolor=_SHARED_COLOUR, label="shared"),
        Patch(facecolor=_FREE_COLOUR, edgecolor="#aaaaaa", label="free"),
        Patch(facecolor=_GONE_COLOUR, label="slid out"),
        Patch(facecolor="white", edgecolor="black", hatch=_PENDING, label="pending rotation"),
    ]
