"""The library's messages, which name what C programs call and pass, in the words of Python."""

import re
from typing import List

from . import kvc_capi as _capi

_METHODS = """abort attention begin begin_rows bind_attention bind_decay bind_operator bind_rope bind_scales can_remove
can_resume check checkpoint_list checkpoint_take commit commit_prefix copy_prefix encoder_put
encoder_query encoder_share fits fits_rows gather get get_codes get_copy history insert lightning_read
lightning_write mask put put_attention put_codes remove reorder resume rows_fill rows_set rows_view runs
set_causal state_conv state_done state_gather state_get
state_layout state_put state_slots state_view""".split()
_TYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "Q8_0", "Q4_0", "INT8", "NF4")
_MODES = ("train", "prefill", "autoregressive", "insert")
_KINDS = ("causal", "encoder", "recurrent", "transformer", "lightning")

_WORDS = {
    **{f"kvc_{method}": f"{method}()" for method in _METHODS},
    "kvc_cache_create": "kvc.Cache()",
    "kvc_cache_destroy": "close()",
    "kvc_cache_memory_bytes": "memory_bytes()",
    "kvc_cache_stats": "stats()",
    "kvc_cache_wrap": "kvc.Cache.wrap()",
    "kvc_rows_query": "rows()",
    "kvc_sequence_query": "query()",
    "kvc_state_digest": "digest()",
    "bind a shift function (kvc_bind_shift), ": "",  # Python has none
    "checkpoints of its kvc_recurrent_desc is KVC_NONE": "checkpoints=0",
    "state_size is 0": "state_shape is None",
    "state_size of the cache is 0": "state_shape of the cache is None",
    "state_size": "state_shape",
    f"KVC_PART_CONV ({_capi.KVC_PART_CONV})": '"conv"',
    f"KVC_PART_RECURRENT ({_capi.KVC_PART_RECURRENT})": '"recurrent"',
    "KVC_PART_CONV": '"conv"',
    "KVC_PART_RECURRENT": '"recurrent"',
    "KVC_RECURRENT_APPROXIMATE": "approximate=True",
    "KVC_LIGHTNING_APPROXIMATE": "approximate=True",
    "KVC_RECURRENT_HOST_CHECKPOINTS": "host_checkpoints=True",
    "KVC_LIGHTNING_HOST_CHECKPOINTS": "host_checkpoints=True",
    "KVC_LIGHTNING_FUSED": "fused=True",
    "KVC_TRANSFORMER_RING is": "ring is",
    "KVC_TRANSFORMER_RING": "ring=True",
    "KVC_ROWS_POSTPADDED": "postpadded=True",
    "KVC_BEGIN_RESERVE, KVC_ROWS_RESERVE": "begin_reserve()",
    "KVC_BEGIN_REPLAY, KVC_ROWS_REPLAY": "replay=True",
    "KVC_BEGIN_REPLAY": "replay=True",
    "KVC_EXTRA_DROPOUT": "dropout_seed",
    "KVC_OPERATOR_REPLACE": "replace=True",
    **{f"KVC_MODE_{mode.upper()}": f'"{mode}"' for mode in _MODES},
    "kvc_operator_forward": "forward()",
    "kvc_operator_register": "register()",
    "KVC_ROWS_REPLAY": "replay=True",
    "KVC_ROWS_NOT_CAUSAL": "causal=False",
    "KVC_TRANSFORMER and KVC_LIGHTNING": 'kind="transformer" and kind="lightning"',
    "attention_mask is null": "attention_mask is None",
    "KVC_CACHE_STRICT": "strict=True",
    "KVC_CAUSAL_POSITION_FREE": "position_free=True",
    "KVC_NONE": "kvc.PADDING",
    "KVC_SEQ_END": "None",
    "with KVC_CACHE_V_IN_K both must be 0": "with v_first, neither is given",
    "with KVC_CACHE_V_IN_K": "with v_first,",
    "KVC_CACHE_V_IN_K": "v_first",
    "KVC_CACHE_INTERLEAVED": "interleaved=True",
    "KVC_CACHE_ROTATE_K": 'rotate="k"',
    "KVC_CACHE_ROTATE_V": 'rotate="v"',
    "it must be 0: only f8_e4m3": "it must be 1: only f8_e4m3",
    "it must be 0 or from 2^-100": "it must be from 2^-100",
    "must be null": "must be None",
    "is null: this call needs it": "is None: this call needs it",
    "set max_rows and the fields behind it in kvc_operator_desc": (
        "pass max_rows and what follows it to kvc.Operator()"
    ),
    "an encoder cache (KVC_ENCODER)": "an encoder cache",
    "a lightning cache (KVC_LIGHTNING)": "a lightning cache",
    "lightning caches (KVC_LIGHTNING)": "lightning caches",
    "a transformer cache (KVC_TRANSFORMER)": "a transformer cache",
    **{f"kind KVC_{kind.upper()}": f'kind="{kind}"' for kind in _KINDS},
    "KVC_WRAPPER": '"wrapper"',
    **{f"KVC_{dtype}": dtype.lower() for dtype in _TYPES},
    "KVC_TOKEN_ENCODER_INPUT": "carries_input",
    "KVC_TOKEN_MASKED": "masked",
    "KVC_TOKEN_SEES_LATER": "sees_later",
    "KVC_TOKEN_TYPE()": "types",
    "except[": "sees_later[",
    "layer_begin": "layers[0]",
    "layer_end": "layers[1]",
    "from has": "states has",
    "row_begin": "begin",
    "sequence_begin": "begin",
    "len is": "length is",
    "n_sequences": "the number of sequences",
    "position[": "positions[",
    "sequence[": "sequences[",
    "token_flags[": "sees_later/types/masked/carries_input[",
}
_PATTERN = re.compile(
    "|".join(rf"\b{re.escape(word)}" + (r"\b" if word[-1].isalnum() else "") for word in _WORDS)
)


# The flags of a token come from four arguments, which the bits tell apart.
_UNKNOWN_FLAGS = re.compile(r"\btoken_flags\[(\d+)\] has the unknown bits 0x([0-9a-f]+); it takes ")
_FLAGS = {1: "sees_later", 2: "carries_input", 4: "masked", 0xFFFF0000: "types"}


def _unknown_flags(found: "re.Match[str]") -> str:
    bits = int(found[2], 16)
    names = " and ".join(name for flag, name in _FLAGS.items() if bits & flag)
    return f"token {found[1]} of the batch has {names}, but this cache takes only "


def in_python(message: str) -> str:
    """A message of the library, with the names that users of Python know."""
    message = _UNKNOWN_FLAGS.sub(_unknown_flags, message)
    return _PATTERN.sub(lambda found: _WORDS[found[0]], message)


def layers_in_words(layers: List[int]) -> str:
    """Ascending layers in words: "layers 0, 2-4"."""
    given = set(layers)
    starts = [layer for layer in layers if layer - 1 not in given]
    ends = [layer for layer in layers if layer + 1 not in given]
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends)]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(spans)}"
