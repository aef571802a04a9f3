"""What attention returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .records import Record


@dataclass
class AttentionOutput(Record):
    """Results of attention, as arrays of the kind of q. None: not asked for."""

    attention_weights: Any = None
    """float32 [batch, n_q_heads, q_len, columns]: the weight of each value, sinks and dropout included"""
    attention_outputs: Any = None
    """float32 [batch, q_len, n_q_heads, head_dim_v]"""
    attention_lse: Any = None
    """float32 [batch, q_len, n_q_heads]: natural log of the sum of exponentials over visible keys, for
    kvc.merge_attention()"""
