"""Pictures of caches of every kind: slots by owner, checkpoints on the time line, which child holds a
sequence back."""

from dataclasses import replace

import numpy as np
import pytest

import kvc

pytest.importorskip("matplotlib")

from kvc.inspect import FREE, SHARED, History, Snapshot, draw  # noqa: E402

ROW = np.ones((1, 1, 8), np.float32)
WINDOW = kvc.Layer(n_kv_heads=1, head_dim=8, reach=4, memory=6)
STATE = kvc.Layer(
    kind="recurrent", state_shape=8, checkpoint_interval=4, checkpoint_min_pos=2, checkpoints=3
)
CROSS = kvc.Layer(kind="encoder", n_kv_heads=1, head_dim=8, capacity=9)


@pytest.fixture
def made(device):
    """Makes caches from layers, and closes them; one layer alone is the child that it needs."""
    caches = []

    def make(*layers):
        wrapper = kvc.Cache.from_layers(
            layers, capacity=64, max_sequences=4, max_batch=8, device=device
        )
        caches.append(wrapper)
        if len(layers) > 1:
            return wrapper
        (child,) = wrapper.children
        wrapper._owns_children = False
        wrapper.close()
        caches.append(child)
        return child

    yield make
    for cache in caches:
        cache.close()


def feed(cache, n, sequence=0, length=0):
    """A pass of n tokens; the first carries an input if there is a length."""
    start = cache.query(sequence).next
    carries = [0] if length else None
    with cache.forward(range(start, start + n), sequence, carries_input=carries):
        for layer in range(cache.n_layers):
            kind = cache.owner(layer)[0].kind
            if kind == "causal":
                cache.put(layer, *[np.repeat(ROW, n, axis=0)] * 2)
            elif kind == "recurrent":
                cache.state_put(layer, "recurrent", ROW[0])
            elif length:
                cache.encoder_put(layer, sequence, *[np.repeat(ROW, length, axis=0)] * 2)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def labels(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


@pytest.fixture
def speech(made):
    """Two sequences share an input of 5, one has its own of 9, one has none."""
    cache = made(CROSS)
    feed(cache, 3, 0, 5)
    cache.copy_prefix(0, 1)
    feed(cache, 2, 2, 9)
    feed(cache, 4, 3)
    return cache


def test_slots_are_drawn_by_the_sequences_that_hold_them(speech, tmp_path):
    before = speech.digest()
    snapshot = Snapshot.of(speech)
    owner = snapshot.cells()[0].reshape(-1, 9)
    assert sorted(set(owner[:, 0].tolist())) == [SHARED, FREE, 2]
    assert (owner == SHARED).sum() == 5 and (owner == 2).sum() == 9
    figure = draw(speech, History([speech.stats()]))
    figure.savefig(tmp_path / "cache.svg")
    slots, time, _ = figure.axes
    assert slots.get_title().startswith("2 of 8 slots hold inputs, 1 shared; ")
    assert labels(time) == ["0", "1", "2", "3"]
    assert texts(time) == ["input of 5", "input of 5", "input of 9"]
    assert speech.digest() == before


@pytest.fixture
def states(made):
    """Checkpoints at 3 and 7 of 9 positions; a copy that has one of them."""
    cache = made(STATE)
    for n in (3, 2, 2, 2):
        feed(cache, n)
    cache.copy_prefix(0, 2, 4)
    return cache


def test_checkpoints_are_drawn_on_the_time_line(states, tmp_path):
    assert Snapshot.of(states).checkpoints == {0: [3, 7], 2: [3]}
    figure = draw(states)
    figure.savefig(tmp_path / "cache.svg")
    memory, time = figure.axes
    stats = states.stats()
    assert f"{stats.cells_used} of {stats.cells} slots, " in texts(memory)[0]
    drawn = {
        (line.get_marker(), tuple(line.get_xdata()), line.get_ydata()[0]) for line in time.lines
    }
    assert drawn == {("d", (3, 7), 0), ("s", (9,), 0), ("d", (3,), 1), ("s", (3,), 1)}
    assert labels(time) == ["0", "2"]


def test_rows_are_drawn_as_cells_and_states_of_time_as_slots(made, tmp_path):
    sizes = dict(n_kv_heads=1, head_dim=8)
    rows = made(kvc.Layer(kind="transformer", **sizes))
    with rows.begin_rows(2, valid=[2, 0, 1, 0]):
        rows.put(0, *[np.ones((4, 2, 1, 8), np.float32)] * 2)
    owner = Snapshot.of(rows).cells()[0].reshape(4, 64)
    assert owner[:, :3].tolist() == [[0, 0, FREE], [FREE] * 3, [2, FREE, FREE], [FREE] * 3]
    draw(rows, History([rows.stats()])).savefig(tmp_path / "rows.svg")
    assert "2 positions" in rows._repr_html_()
    lightning = made(kvc.Layer(kind="lightning", **sizes, checkpoint_min_pos=1))
    lightning.bind_decay([1.0])
    with lightning.forward(range(3), 1):
        lightning.put_attention(0, *[np.ones((3, 1, 8), np.float32)] * 3)
    assert Snapshot.of(lightning).checkpoints == {1: [3]}
    figure = draw(lightning)
    figure.savefig(tmp_path / "lightning.svg")
    assert " slots, " in texts(figure.axes[0])[0] and labels(figure.axes[1]) == ["1"]
    assert "checkpoints at 3" in lightning._repr_html_()


@pytest.fixture
def hybrid(made):
    """A window that slid, states with checkpoints, an input."""
    cache = made(WINDOW, STATE, CROSS)
    feed(cache, 3, 0, 5)
    for _ in range(9):
        feed(cache, 1)
    feed(cache, 2, 1)
    return cache


def test_the_child_that_holds_a_sequence_back_is_named(hybrid, tmp_path):
    snapshot = Snapshot.of(hybrid)
    assert [child.kind for child in snapshot.children] == ["causal", "recurrent", "encoder"]
    assert hybrid.query(0).next == 12 and hybrid.children[1].checkpoint_list(0) == [3, 7, 11]
    assert snapshot.back == {0: 11, 1: 0}
    assert snapshot.holders(0) == []  # every child can go back by one
    assert snapshot.holders(1) == [1]  # no checkpoint yet
    hybrid.resume(0, 11)
    snapshot = Snapshot.of(hybrid)
    assert [child.back[0] for child in snapshot.children] == [10, 7, 10]
    assert snapshot.back[0] == hybrid.can_resume(0, 10) and snapshot.holders(0) == [1]
    figure = draw(hybrid, History([hybrid.stats()]))
    figure.savefig(tmp_path / "cache.svg")
    memory, time, _ = figure.axes
    assert time.get_position().height > 0.2  # nothing outside of it takes its room
    assert labels(memory) == ["child 0, causal", "child 1, recurrent", "child 2, encoder"]
    assert labels(time)[:3] == [
        "0: child 0, causal",
        "0: child 1, recurrent",
        "0: child 2, encoder",
    ]
    shown = texts(time)
    assert f"back to {snapshot.back[0]}: held by child 1" in shown
    assert "back to 0: held by child 1" in shown


def test_a_closed_child_is_left_out(hybrid):
    hybrid.children[2].close()
    assert [child.kind for child in Snapshot.of(hybrid).children] == ["causal", "recurrent"]
    draw(hybrid)


def test_notebooks_show_every_kind(speech, states, hybrid):
    shown = speech._repr_html_()
    assert "an input of 5 at 0" in shown and "sequence 3: no input" in shown and "<rect" in shown
    shown = states._repr_html_()
    assert "9 positions, checkpoints at 3, 7" in shown and "slots used" in shown
    shown = hybrid._repr_html_()
    assert shown.count("<li>") == 3 and "child 1, recurrent: " in shown
    assert "sequence 1: 2 positions, back to 0 (child 1)" in shown


def test_a_wrapped_child_has_no_picture_of_its_own(hybrid, monkeypatch):
    seen = []
    monkeypatch.setattr(kvc.Cache, "_watcher", lambda cache: seen.append(cache.kind))
    feed(hybrid, 1)
    hybrid.children[0].close()
    hybrid.close()
    assert set(seen) == {"wrapper"}


@pytest.mark.parametrize(
    "layer, words",
    [
        (kvc.Layer(dtype="f16"), "K and V in f16: 512 bytes a token"),
        (kvc.Layer(dtype="f16", interleaved=True), "K and V in f16, interleaved: 512 bytes a token"),
        (
            kvc.Layer(dtype="q8_0", rotate=True),
            "K and V in rotated q8_0 (blocks of 32): 272 bytes a token",
        ),
        (
            kvc.Layer(dtype_k="f8_e4m3", dtype_v="nf4", block=16, rotate="v"),
            "K in f8_e4m3, V in rotated nf4 (blocks of 16): 224 bytes a token",
        ),
        (
            kvc.Layer(dtype="q4_0", v_first=32, head_dim_v=32),
            "K in q4_0 (blocks of 32), V in K from element 32: 72 bytes a token",
        ),
        (
            kvc.Layer(kind="encoder", capacity=9, dtype="int8"),
            "K and V in int8 (blocks of 64): 272 bytes a position of an input",
        ),
    ],
)
def test_the_storage_is_named(made, layer, words):
    cache = made(replace(layer, n_kv_heads=2, head_dim=64))
    assert Snapshot.of(cache).storage == words
    assert words in draw(cache).axes[0].get_title()
    assert words in cache._repr_html_()


def test_a_wrapper_names_the_storage_of_each_child(made, tmp_path):
    cache = made(WINDOW, STATE, replace(CROSS, head_dim=32, dtype="q4_0"))
    assert Snapshot.of(cache).storage == Snapshot.of(cache).children[1].storage == ""
    figure = draw(cache)
    figure.savefig(tmp_path / "cache.svg")
    first, states, last = texts(figure.axes[0])
    assert first.endswith("; K and V in f32: 64 bytes a token") and states.endswith(" MB")
    assert last.endswith("; K and V in q4_0 (blocks of 32): 36 bytes a position of an input")
