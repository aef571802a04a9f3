"""Replays the vectors of attention and of dropout masks through Python's operators."""

import numpy as np
import pytest

import kvc
from vectors import vectors, wave

ROWS = 9  # the row of a vector is the sequence of its dropout


def replay(fields, name, device):
    """The vector as attention without a cache: keys at their positions, in the row that is its sequence."""
    shown = np.array([[digit == "1" for digit in row] for row in fields["visible"]])
    n_q, n_k = shown.shape
    at = fields.get("j", range(n_k))
    q_heads, kv_heads = fields["q_heads"], fields["kv_heads"]
    dim_k, dim_v, salt = fields["head_dim_k"], fields["head_dim_v"], fields["salt"]
    dropout = fields.get("dropout")
    row = dropout["sequence"] if dropout else 0
    kv_len = max(at) + 1
    q = np.zeros((ROWS, n_q, q_heads, dim_k), np.float32)
    k = np.full((ROWS, kv_len, kv_heads, dim_k), np.nan, np.float32)  # what is hidden is never read
    v = np.full((ROWS, kv_len, kv_heads, dim_v), np.nan, np.float32)
    mask = np.zeros((n_q, kv_len), bool)
    q[row] = 2 * wave(salt, (n_q, q_heads, dim_k))
    k[:, list(at)] = wave(salt + 1, (n_k, kv_heads, dim_k))
    v[:, list(at)] = wave(salt + 2, (n_k, kv_heads, dim_v))
    mask[:, list(at)] = shown
    options = {}
    if "bias" in fields:
        options["bias"] = np.zeros((q_heads, n_q, kv_len), np.float32)
        options["bias"][:, :, list(at)] = wave(salt + 3, (q_heads, n_q, n_k))
    if "p" in fields:
        options["query_offset"] = fields["p"][0]
    if dropout:
        options.update(dropout_seed=int(dropout["seed"], 16), layer=dropout["layer"])
    weights = np.empty((ROWS, q_heads, n_q, kv_len), np.float32)
    lse = np.empty((ROWS, n_q, q_heads), np.float32)
    with kvc.Operator(
        name,
        softmax_scale=fields.get("scale", 0.0),
        dropout_prob=dropout["prob"] if dropout else 0.0,
        max_rows=ROWS,
        max_q_len=n_q,
        max_kv_len=kv_len,
        n_kv_heads=kv_heads,
        max_q_heads=q_heads,
        head_dim=dim_k,
        head_dim_v=dim_v,
        device=device,
    ) as operator:
        out = operator.forward(
            q,
            k,
            v,
            mask=mask,
            softcap=fields.get("softcap", 0.0),
            alibi_slopes=fields.get("slopes"),
            sinks=fields.get("sinks"),
            lse=lse,
            weights=weights,
            **options,
        )
    np.testing.assert_allclose(out[row], fields["out"], atol=2e-5)
    wanted = np.array([[float(each) for each in heads] for heads in fields["lse"]])
    np.testing.assert_allclose(lse[row], wanted, atol=1e-5)
    if "weights" in fields:
        found = weights[row][:, :, list(at)]
        np.testing.assert_allclose(found, fields["weights"], atol=2e-5)


def test_attention(device):
    cases = vectors("attention")["attention"]
    assert len(cases) == 42
    for fields in cases:
        replay(fields, "vanilla", device)
        if "dropout" not in fields:
            replay(fields, "flash", device)
            replay(fields, "ring", device)


def kept(one):
    return np.array([[[digit == "1" for digit in row] for row in head] for head in one["kept"]])


def test_dropout_masks():
    cases = vectors("attention")["dropout"]
    assert len(cases) == 12
    for one in cases:
        wanted = kept(one)
        arguments = dict(
            layer=one["layer"],
            sequence=one["sequence"],
            n_heads=len(wanted),
            q_positions=one["q_position"],
            k_positions=one["k_position"],
        )
        seed = int(one["seed"], 16)
        found = kvc.dropout_mask(seed, one["prob"], **arguments)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, wanted)
        into = np.zeros(wanted.shape[::-1], bool).T
        assert kvc.dropout_mask(seed, one["prob"], **arguments, into=into) is into
        np.testing.assert_array_equal(into, wanted)


def test_philox():
    """Word by word, as masks show it: a probability just above and just below a word's."""
    for one in vectors("attention")["philox"]:
        (block, p, place, sequence), (low, high) = one["counter"], one["key"]
        layer, head = divmod(place, 65536)
        if max(4 * block + 3, p, sequence) >= 2**31 or layer > 65535:
            continue  # no positions
        for word, wanted in enumerate(one["words"]):
            for probability in np.linspace(0.05, 0.95, 19, dtype=np.float32):
                found = kvc.dropout_mask(
                    high << 32 | low,
                    float(probability),
                    layer=layer,
                    sequence=sequence,
                    n_heads=head + 1,
                    q_positions=[p],
                    k_positions=[4 * block + word],
                )
                assert found[head, 0, 0] == (wanted >= np.floor(float(probability) * 2.0**32))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(seed=-1), kvc.InvalidArgument, "seed is -1; it must be 0 to 2\\^64 - 1"),
        (dict(seed=2**64), kvc.InvalidArgument, "seed is 18446744073709551616"),
        (dict(probability=1.0), kvc.InvalidArgument, "probability"),
        (dict(layer=65536), kvc.InvalidArgument, "layer"),
        (dict(sequence=-1), kvc.InvalidArgument, "sequence"),
        (dict(q_positions=[-1]), kvc.InvalidArgument, "q_position"),
        (dict(q_positions=3), kvc.InvalidArgument, r"q_positions has shape \(\), not \(n_q,\)"),
        (dict(n_heads=65537), kvc.NotSupported, "heads"),
        (
            dict(into=np.zeros((1, 1, 1), bool)),
            kvc.ShapeError,
            r"into has shape \(1, 1, 1\), not \[2, 1, 2\]",
        ),
        (dict(into=np.zeros((2, 1, 2), np.float32)), kvc.DtypeError, "into"),
    ],
)
def test_wrong_arguments_of_a_mask(changes, error, message):
    good = dict(seed=1, probability=0.5, n_heads=2, q_positions=[0], k_positions=[0, 1])
    kvc.dropout_mask(**good)
    with pytest.raises(error, match=message):
        kvc.dropout_mask(**{**good, **changes})
