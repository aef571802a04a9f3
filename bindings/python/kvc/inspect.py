"""Pictures of a cache: its cells, its sequences, and its memory over a run.

    python -m kvc inspect -o cache.svg program.py …     # runs a program and draws its caches

    import kvc.inspect
    history = kvc.inspect.History()
    history.sample(cache)                               # after each pass, or as often as you like
    kvc.inspect.draw(cache, history).savefig("cache.svg")

Drawing needs matplotlib: `pip install matplotlib`. It changes nothing in the cache and uses its
public methods only (query, runs, stats …).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple, Union

import numpy as np

from .cache import Cache
from .codecs import stored_in_words
from .info import EncoderInput, Run, SequenceInfo, Stats

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure

    Owners = npt.NDArray[np.int64]  # of each cell: a sequence, FREE or SHARED
    Marks = npt.NDArray[np.bool_]

__all__ = ["History", "Snapshot", "draw"]

FREE, SHARED = -1, -2
WITH_POSITIONS, WITH_STATES = ("causal", "transformer"), ("recurrent", "lightning")
"""Kinds whose sequences hold positions in cells, and kinds whose sequences hold states in slots."""


@dataclass(frozen=True)
class Snapshot:
    """What a cache holds at one moment."""

    stats: Stats
    sequences: Dict[int, Tuple[SequenceInfo, List[Run]]]
    """those that hold something, or lost positions because their window slid"""
    kind: str = "causal"
    inputs: Dict[int, EncoderInput] = field(default_factory=dict)
    """of an encoder cache, by sequence"""
    slot_cells: int = 0
    """of an encoder cache: the cells of a slot"""
    checkpoints: Dict[int, List[int]] = field(default_factory=dict)
    """of a recurrent or lightning cache, by sequence: where they continue"""
    back: Dict[int, int] = field(default_factory=dict)
    """by sequence: where it can continue if it must go back by a token or more"""
    children: List[Snapshot] = field(default_factory=list)
    """of a wrapper, without those that are closed"""
    storage: str = ""
    """how keys and values are stored, and in how many bytes; empty: not at all, or see children"""

    @staticmethod
    def of(cache: Cache, layer: int = 0) -> Snapshot:
        """The cells of one layer. Raises InvalidHandle (closed), InvalidArgument, Busy."""
        if cache.kind in WITH_POSITIONS and not 0 <= layer < cache.n_layers:
            cache.runs(layer, 0)  # raises
        has_runs = cache.kind in (*WITH_POSITIONS, "encoder")
        infos = [cache.query(sequence) for sequence in range(cache.max_sequences)]
        sequences = {
            sequence: (info, cache.runs(layer, sequence) if has_runs else [])
            for sequence, info in enumerate(infos)
            if info.next or info.lost_below
        }
        inputs, checkpoints = {}, {}
        for sequence in sequences:
            if cache.kind == "encoder" and (held := cache.encoder_query(sequence)):
                inputs[sequence] = held
            if cache.kind in WITH_STATES:
                checkpoints[sequence] = cache.checkpoint_list(sequence)
        return Snapshot(
            cache.stats(),
            sequences,
            cache.kind,
            inputs,
            cache._shape.capacity if cache.kind == "encoder" else 0,
            checkpoints,
            {
                sequence: cache.can_resume(sequence, info.next - 1)
                for sequence, (info, _) in sequences.items()
                if info.next
            },
            [Snapshot.of(child) for child in cache.children if not child.closed],
            stored_in_words(cache._shape) if cache.kind != "wrapper" else "",
        )

    def holders(self, sequence: int) -> List[int]:
        """The children of a wrapper that hold a sequence back: they cannot continue where it lies one
        token back, and of them those that must go back furthest."""
        places = [child.back.get(sequence, 0) for child in self.children]
        wanted = self.sequences[sequence][0].next - 1
        least = min(places, default=wanted)
        return [i for i, place in enumerate(places) if place == least < wanted]

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
    """Draws a cache, and its memory over a run if there is a history. Each sequence has a colour. The
    headings name how keys and values are stored: types, blocks, rotation, bytes of a token.

    A causal or transformer cache: the pool, cell after cell, row after row. Below, what each sequence holds by
    position, and what slid out of its window. Shared cells are dark. Hatched keys have a pending
    rotation because their positions have moved.

    An encoder cache: its slots, a row for each, by the sequence whose input they hold. Below, from
    which position on each sequence sees its input.

    A recurrent or lightning cache: its slots. Below, the checkpoints of each sequence on its time line.

    A wrapper: the memory of each child. Below, what each child holds of each sequence, the place to
    which it can step back, and which child keeps it from going back by fewer tokens.

    Returns a matplotlib Figure; its `savefig` writes the file.
    """
    from ._pictures import figure_of

    snapshot = Snapshot.of(what) if isinstance(what, Cache) else what
    return figure_of(snapshot, history.samples if history else [])
