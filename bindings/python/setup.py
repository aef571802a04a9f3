"""Builds the extension from the C headers with SWIG and links it with libkvc.

The library is the first of these that applies:
  KVC_BUILD_DIR=<folder>   a CMake build of this source tree; its libkvc.so is shipped
  KVC_SYSTEM=1             an installed kvc that pkg-config finds; it is linked, not shipped
  the source tree around   built by CMake in build/release, and shipped in the package
  else                     as with KVC_SYSTEM=1
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).resolve().parent
TREE = HERE.parent.parent
MODULE = "kvc_capi"


def fail(message):
    sys.exit(f"kvc: {message}")


def needed(program, package):
    """The path of a program that the build needs."""
    path = shutil.which(program)
    if path is None:
        fail(f"{program} is missing (Debian: apt-get install {package})")
    return path


def in_tree():
    return (TREE / "capi" / "include" / "kvc" / "kvc.h").is_file()


def from_pkg_config():
    """(include folders, library folders, library to ship) of an installed kvc."""
    command = [needed("pkg-config", "pkg-config"), "--cflags-only-I", "--libs-only-L", "kvc"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        fail(
            f"pkg-config finds no kvc: install it, or build inside its source tree\n{result.stderr}"
        )
    words = result.stdout.split()
    includes = [word[2:] for word in words if word.startswith("-I")]
    if not includes:  # pkg-config omits system folders
        query = [command[0], "--variable=includedir", "kvc"]
        includes = [
            subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        ]
    return includes, [word[2:] for word in words if word.startswith("-L")], None


def from_build(folder):
    """(include folders, library folders, library to ship) of a CMake build of this tree."""
    library = folder / "lib" / "libkvc.so"
    if not library.exists():
        fail(f"there is no {library}: build it with cmake --build {folder}")
    return [str(TREE / "capi" / "include")], [str(folder / "lib")], library.resolve()


def build_tree():
    """Builds libkvc in the folder that `make build` uses."""
    folder = TREE / "build" / "release"
    cmake = needed("cmake", "cmake")
    configure = [cmake, "-S", str(TREE), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    if not (folder / "CMakeCache.txt").exists() and shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    subprocess.run(configure, check=True)
    build = [
        cmake,
        "--build",
        str(folder),
        "--target",
        "kvc",
        "--parallel",
        str(os.cpu_count() or 1),
    ]
    subprocess.run(build, check=True)
    return folder


def find_library():
    if os.environ.get("KVC_BUILD_DIR"):
        return from_build(pathlib.Path(os.environ["KVC_BUILD_DIR"]).resolve())
    if os.environ.get("KVC_SYSTEM") == "1" or not in_tree():
        return from_pkg_config()
    return from_build(build_tree())


def header_version():
    """The version in base.h, of the source tree or of an installed library."""
    folders = [TREE / "capi" / "include"] if in_tree() else map(pathlib.Path, from_pkg_config()[0])
    for folder in folders:
        header = folder / "kvc" / "base.h"
        if header.is_file():
            found = re.findall(
                r"^#define KVC_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text(), re.M
            )
            return ".".join(found)
    fail("kvc/base.h is not where pkg-config says")


class BuildExtension(build_ext):
    """Runs SWIG, so that generated files stay out of the source tree."""

    def build_extension(self, ext):
        includes, folders, shipped = find_library()
        package = pathlib.Path(self.get_ext_fullpath(ext.name)).parent
        package.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(self.build_temp)
        scratch.mkdir(parents=True, exist_ok=True)
        wrapper = scratch / f"{MODULE}_wrap.c"
        subprocess.run(
            [needed("swig", "swig"), "-python", "-builtin", "-threads", "-Wall"]
            + [f"-I{folder}" for folder in includes]
            + ["-outdir", str(package), "-o", str(wrapper), str(HERE / "src" / f"{MODULE}.i")],
            check=True,
        )
        ext.sources = [str(wrapper)]
        ext.include_dirs = [*includes, str(HERE / "src")]
        ext.library_dirs = folders
        if shipped is not None:
            # Under its SONAME, by which the loader looks it up.
            soname = shipped.parent / ".".join(shipped.name.split(".")[:3])
            shutil.copyfile(shipped, package / soname.name)
            ext.runtime_library_dirs = ["$ORIGIN"]
        else:
            ext.runtime_library_dirs = folders
        super().build_extension(ext)


setup(
    version=header_version(),
    ext_modules=[
        Extension(
            f"kvc._{MODULE}",
            sources=[],
            depends=[f"src/{MODULE}.i", *map(str, HERE.glob("src/*.h"))],
            libraries=["kvc"],
            extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
