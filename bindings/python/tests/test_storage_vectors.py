"""Replays the vectors of storage types through Python: codes and scales byte for byte, what is read back, the rotation, attention
over what is stored."""

import numpy as np
import pytest

import kvc
from vectors import floats, vectors, wave


def test_codecs():
    cases = vectors("storage")["codecs"]
    assert len(cases) == 343
    for fields in cases:
        dim, dtype = fields["dim"], fields["type"]
        values = floats(fields["in"]).reshape(-1, dim)
        options = dict(
            block=fields.get("block", 0) if dtype == "nf4" else 0,
            rotate=bool(fields.get("rotate")),
            scale=float(floats(fields["scale"])[0]) if "scale" in fields else 1.0,
        )
        with np.errstate(invalid="ignore"):
            codes, scales = kvc.encode(values, dtype, **options)
        read = kvc.decode(codes, scales, dtype, **options)
        stored, known = codes.tobytes(), bytes.fromhex(fields["codes"])
        if "out" not in fields:
            wanted = kvc.decode(codes, scales, dtype, **{**options, "rotate": False})
            np.testing.assert_allclose(
                np.linalg.norm(read, axis=1), np.linalg.norm(wanted, axis=1), rtol=1e-4
            )
        else:
            digits = fields["out"].split(",")
            wanted = np.array([np.nan if d == "n" else floats(d.zfill(8))[0] for d in digits])
            np.testing.assert_array_equal(read.ravel(), wanted)
        if not np.isnan(values).any() or dtype not in ("f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"):
            assert stored == known, fields
        assert (b"" if scales is None else scales.tobytes()).hex() == fields.get("scales", "")


def test_rotation():
    """int8 stores what the rotation makes to half a step of its largest magnitude."""
    cases = vectors("storage")["rotation"]
    assert len(cases) == 5
    for fields in cases:
        codes, scales = kvc.encode(wave(fields["salt"], (1, fields["dim"])), "int8", rotate=True)
        turned = kvc.decode(codes, scales, "int8")[0]
        step = np.abs(fields["out"]).max() / 127
        np.testing.assert_allclose(turned, fields["out"], atol=step * 0.501)


@pytest.mark.parametrize("kind", ["causal", "transformer"])
def test_attention_over_what_is_stored(device, kind):
    """The last tokens attend, in a causal cache and in a row of a transformer cache."""
    cases = vectors("storage")["storage_attention"]
    assert len(cases) == 26
    for fields in cases:
        dim, n, n_q, salt = (fields[name] for name in ("dim", "tokens", "queries", "salt"))
        cache = kvc.Cache(
            kind=kind,
            n_layers=1,
            n_kv_heads=fields["kv_heads"],
            head_dim=dim,
            capacity=n,
            max_batch=n,
            dtype=fields["type"],
            rotate=bool(fields["rotate"]),
            device=device,
        )
        q = wave(salt, (n_q, fields["q_heads"], dim))
        k, v = 2 * wave(salt + 1, (n, fields["kv_heads"], dim)), wave(
            salt + 2, (n, fields["kv_heads"], dim)
        )
        lse = np.empty(q.shape[:2], np.float32)
        rows = kind == "transformer"
        for part in (slice(0, n - n_q), slice(n - n_q, n)):
            tokens = range(n)[part]
            cache.begin_rows(len(tokens)) if rows else cache.begin(tokens)
            cache.put(0, *(each[part][None] if rows else each[part] for each in (k, v)))
        lead = (None,) if rows else ()
        out = cache.attention(0, q[lead], lse=lse[lead])
        np.testing.assert_allclose(
            out.reshape(q.shape)[..., :: fields["every"]], fields["out"], atol=1e-5
        )
        np.testing.assert_allclose(lse, fields["lse"], atol=1e-5)
        cache.close()
