"""Replays the vectors of lightning caches through Python: the status of each call, the outputs, and what each sequence's state and
checkpoints are after each; and the families of slopes."""

import numpy as np
import pytest

import kvc
from vectors import floats, status_of, vectors, wave


def assert_near(got, wanted):
    """Numbers of a script have eight digits and are sums of a few products of numbers below 1."""
    np.testing.assert_allclose(np.ravel(got), np.ravel(wanted), rtol=1e-5, atol=1e-5)


class Player:
    def __init__(self, fields, device):
        self.fields = fields
        self.cache = kvc.Cache(
            kind="lightning",
            n_layers=len(fields["slope"]),
            n_kv_heads=fields["heads"],
            head_dim=fields["head_dim_k"],
            head_dim_v=fields["head_dim_v"],
            max_sequences=fields["max_sequences"],
            max_batch=64,
            # In the library 0 is the default and -1 is none.
            checkpoints={-1: 0, 0: 24}.get(fields["checkpoints"], fields["checkpoints"]),
            checkpoint_interval={-1: None, 0: 1664}.get(
                fields["checkpoint_interval"], fields["checkpoint_interval"]
            ),
            checkpoint_min_pos={-1: 0, 0: 16}.get(
                fields["checkpoint_min_pos"], fields["checkpoint_min_pos"]
            ),
            draft_states=fields["draft_states"],
            device=device,
        )
        self.cache.bind_attention(fields["q_heads"], scale=fields.get("scale", 0.0))
        for layer, slopes in enumerate(fields["slope"]):
            self.cache.bind_decay(slopes, layers=layer)

    def begin(self, step):
        n = len(step["position"])
        masked = np.flatnonzero(step["masked"]) if "masked" in step else None
        self.cache.begin(step["position"], step["sequence"], masked=masked)
        heads, q_heads = self.fields["heads"], self.fields["q_heads"]
        dim_k, dim_v = self.fields["head_dim_k"], self.fields["head_dim_v"]
        for layer, wanted in enumerate(step["out"]):
            salt = step["salt"] + 3 * layer
            k, v = wave(salt, (n, heads, dim_k)), wave(salt + 1, (n, heads, dim_v))
            q = wave(salt + 2, (n, q_heads, dim_k))
            assert_near(self.cache.put_attention(layer, k, v, q), wanted)
            assert_near(self.cache.attention(layer, q), wanted)

    def call(self, step):
        if step["op"] == "begin":
            return self.begin(step)
        names = {
            "checkpoint_take": ("sequence",),
            "commit_prefix": ("sequence", "keep"),
            "resume": ("sequence", "want"),
            "can_resume": ("sequence", "want"),
            "copy_prefix": ("src", "dst", "len"),
        }
        call = getattr(self.cache, step["op"])
        return call(*(step[name] for name in names.get(step["op"], ())))


SCRIPTS = 28


@pytest.mark.parametrize("number", range(SCRIPTS))
def test_a_script(number, device):
    scripts = vectors("lightning")["lightning"]
    assert len(scripts) == SCRIPTS
    player = Player(scripts[number]["cache"], device)
    cache = player.cache
    for step in scripts[number]["steps"]:
        before = cache.digest()
        status, got = status_of(lambda: player.call(step))
        assert status == step["status"], step
        if status != "OK":
            assert cache.digest() == before
        elif "got" in step:
            assert got == step["got"], step
        cache.check()
        assert [cache.query(s).next for s in range(cache.max_sequences)] == step["next"], step
        checkpoints = [cache.checkpoint_list(s) for s in range(cache.max_sequences)]
        assert checkpoints == step["checkpoints"], step
        if "state" in step:
            for layer in range(cache.n_layers):
                wanted = [of_layers[layer] for of_layers in step["state"]]
                assert_near(cache.lightning_read(layer), wanted)
    cache.close()


def test_slopes():
    families = vectors("lightning")["slopes"]
    assert len(families) == 10
    for fields in families:
        made = kvc.slopes(
            fields["family"], fields["heads"], layer=fields["layer"], n_layers=fields["layers"]
        )
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, floats(fields["slopes"]))
