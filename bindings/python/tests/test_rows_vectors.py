"""Replays the vectors of transformer caches through Python: the status of each call, what each token sees (by mask and by
attention), what each row holds. A failed call leaves the digest as it was."""

import numpy as np
import pytest

import kvc
from vectors import status_of, vectors


class Player:
    def __init__(self, fields, device):
        batch, q_max = fields["batch"], fields["max_q"]
        self.ring, self.batch = bool(fields.get("ring")), batch
        self.columns = fields["length"] + (q_max if self.ring else 0)
        self.cache = kvc.Cache(
            kind="transformer",
            n_layers=2,
            n_kv_heads=1,
            head_dim=2,
            head_dim_v=3,
            capacity=fields["length"],
            max_sequences=batch,
            max_batch=batch * q_max,
            reach=fields.get("reach") or None,
            ring=self.ring,
            causal=not fields.get("not_causal"),
            device=device,
        )
        self.device, self.q_len = device, 0
        if "starts" in fields:
            self.cache.rows_set(starts=fields["starts"])

    def call(self, step):
        cache, op = self.cache, step["op"]
        if op in ("begin", "fits"):
            return getattr(self, op)(step)
        if op == "insert":
            with self.made_of(step["other"]) as other:
                return cache.insert(other, step["slot"])
        if op == "rows_set":
            return cache.rows_set(step.get("index"), step.get("starts"), begin=step["row"])
        names = {
            "set_causal": ("except",),
            "commit_prefix": ("sequence", "keep"),
            "can_resume": ("sequence", "want"),
            "resume": ("sequence", "want"),
            "copy_prefix": ("src", "dst", "len"),
            "reorder": ("dst", "src"),
            "remove": ("sequence", "begin", "end"),
        }
        return getattr(cache, op)(*(step[name] for name in names.get(op, ())))

    @staticmethod
    def arguments(step):
        options = {
            name: step[name] for name in ("valid", "attention_mask", "token_types") if name in step
        }
        if step.get("not_causal"):
            options["causal"] = False
        return {**options, "postpadded": bool(step.get("postpadded"))}

    def fits(self, step):
        if not self.cache.fits_rows(step["q_len"], **self.arguments(step)):
            raise kvc.CacheFull("it does not fit", kvc.Status.CACHE_FULL)

    def begin(self, step):
        self.cache.begin_rows(step["q_len"], **self.arguments(step))
        self.q_len = step["q_len"]
        value = np.array(step["value"], np.float32)[:, :, None, None]
        for layer in range(2):
            k, v = (np.broadcast_to(value, (*value.shape[:3], n)) for n in (2, 3))
            self.cache.put(layer, k, v)

    def made_of(self, other):
        """Another cache, whose rows are filled by one pass; then come their starts."""
        rows = other["rows"]
        made = Player({**other, "batch": len(rows)}, self.device)
        q_len = other["max_q"]
        values = [row["values"] + [0] * (q_len - len(row["values"])) for row in rows]
        valid = [len(row["values"]) for row in rows]
        made.begin({"q_len": q_len, "value": values, "valid": valid})
        made.cache.commit()
        made.cache.rows_set(starts=[row["starts"] for row in rows])
        return made.cache

    def visible(self):
        """By the mask; attention with a query of zeros returns the mean of the same values."""
        mask = self.cache.mask(0, np.empty((self.batch, 1, self.q_len, self.columns), bool))[:, 0]
        out = self.cache.attention(1, np.zeros((self.batch, self.q_len, 1, 2), np.float32))
        values = np.asarray(self.cache.rows_view(1).v)[:, :, 0, 0]
        found = []
        for b, end in enumerate(self.cache.rows().index):
            held = np.arange(max(0, end - self.columns), end)
            columns = held % self.columns
            found.append([held[seen[columns]].tolist() for seen in mask[b]])
            assert mask[b].sum() == sum(map(len, found[-1]))  # it shows nothing that is not held
            for i, seen in enumerate(mask[b]):
                mean = values[b, seen].mean() if seen.any() else 0
                np.testing.assert_allclose(out[b, i, 0], mean, atol=1e-4)
        return found

    def rows(self):
        result = []
        for sequence, (index, starts) in enumerate(zip(*self.cache.rows())):
            info = self.cache.query(sequence)
            k, _ = self.cache.gather(1, sequence, v=False)
            for run in self.cache.runs(1, sequence):
                column = run.cell - sequence * self.columns
                assert column == run.position % self.columns
            assert info.next == index
            result.append([info.first, int(index), int(starts), k[:, 0, 0].astype(int).tolist()])
        self.cache.check()
        return result


SCRIPTS = 94


@pytest.mark.parametrize("number", range(SCRIPTS))
def test_a_script(number, device):
    scripts = vectors("rows")["transformer"]
    assert len(scripts) == SCRIPTS
    script = scripts[number]
    player = Player(script["cache"], device)
    for n, step in enumerate(script["steps"]):
        where = f"{script['name']}, step {n}: {step}"
        before = player.cache.digest()
        status, got = status_of(lambda: player.call(step))
        assert status == step["status"], where
        if status != "OK":
            assert player.cache.digest() == before, where
        elif "got" in step:
            assert got == step["got"], where
        if "visible" in step:
            assert player.visible() == step["visible"], where
        assert player.rows() == step["rows"], where
    player.cache.close()
