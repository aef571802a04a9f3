"""What the library reports about caches and sequences, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class SequenceInfo:
    """What a sequence holds, in positions."""

    first: int
    """lowest position held; `next` if it holds none"""
    next: int
    """where it continues: one past the last position"""
    count: int
    """positions held"""
    room: int
    """tokens that it could take now"""
    lost_below: int
    """one more than the highest position that sliding has released; 0: none"""
    approximate: bool = False
    """recurrent caches: its state still contains tokens that were removed from its middle"""


@dataclass(frozen=True)
class Stats:
    """What a cache holds."""

    state: str
    """"idle", "pass", "reserve" or "poisoned\""""
    cells: int
    """cells in the pool"""
    cells_used: int
    """cells held by at least one sequence"""
    cells_shared: int
    """cells held by more than one"""
    bytes: int
    """memory of this cache, in bytes"""
    passes: int
    """passes committed since it was created"""


@dataclass(frozen=True, eq=False)
class StateSequence:
    """A sequence of the batch of a recurrent cache."""

    sequence: int
    """its number"""
    tokens: npt.NDArray[np.int32]
    """which tokens of the batch are its: x[each.tokens] are its inputs, in order"""
    rows: slice
    """its rows for state_put(): one for each token if n_tokens <= draft_states + 1, else one for
    the last"""
    read_slot: int
    """where state_view() has its state from before the pass; 0, the slot of zeros, for a new one"""

    @property
    def n_tokens(self) -> int:
        """How many tokens of the batch are its."""
        return len(self.tokens)

    @property
    def n_rows(self) -> int:
        """How many rows it has."""
        rows: int = self.rows.stop - self.rows.start
        return rows


@dataclass(frozen=True)
class EncoderInput:
    """What a sequence of an encoder cache sees."""

    position: int
    """of the token that carried it"""
    length: int
    """its positions; 0: no layer of it was put, so cross attention can be skipped"""


@dataclass(frozen=True)
class Run:
    """Neighbouring cells that hold consecutive positions of a sequence."""

    cell: int
    """the first cell, counted from the start of the pool"""
    length: int
    """number of cells"""
    position: int
    """position in the first cell"""
    offset: int
    """pending rotation of the keys: position minus the one they were rotated for"""
