"""Builds the extension from the C headers with SWIG and links it with libkvc.

The library is the first of these that applies:
  KVC_BUILD_DIR=<folder>   a CMake build of the sources of libkvc; its libkvc.so is shipped. A relative
                           one begins where the user is, not in this folder
  KVC_SYSTEM=1             an installed kvc that pkg-config finds; it is linked, not shipped
  else                     built by CMake from its sources (the tree around this folder, or libkvc/
                           of a source distribution) in their build/release, and shipped

Shipped means that the package includes the library. An editable installation does not copy it but
loads it from the build folder, so that a rebuilt library is used at once.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
MODULE = "kvc_capi"
LIBRARY_SOURCES = ("CMakeLists.txt", "LICENSE", "capi", "core", "kernels", "pkgconfig")


def fail(message):
    sys.exit(f"kvc: {message}")


if (
    int(__version__.split(".")[0]) < 77
):  # would read neither name nor modules, and build an empty package
    fail(f"setuptools {__version__} is too old for pyproject.toml: pip install 'setuptools>=77'")


def find_tree():
    """Where the sources of libkvc are; None outside a source tree and a source distribution."""
    for folder in (HERE / "libkvc", HERE.parent.parent):
        if (folder / "capi" / "include" / "kvc" / "kvc.h").is_file():
            return folder
    return None


TREE = find_tree()


def builds_library():
    """Whether libkvc is compiled here; else it exists already."""
    by_caller = os.environ.get("KVC_BUILD_DIR") or os.environ.get("KVC_SYSTEM") == "1"
    return TREE is not None and not by_caller


def build_folder():
    """The folder that `make build` uses."""
    return TREE / "build" / "release"


def runs(*programs):
    return any(shutil.which(program) for program in programs)


def compiler_of(variable, *defaults):
    """The programs of which one must exist: that of the environment variable, else the defaults."""
    words = shlex.split(os.environ.get(variable, ""))
    return words[:1] or defaults


def finds_python():
    folders = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    return any(pathlib.Path(folder, "Python.h").is_file() for folder in folders)


def finds_header(name):
    """Whether CMake will find a header: where it searches, unless it has found it before."""

    def listed(variable):
        return filter(None, os.environ.get(variable, "").split(os.pathsep))

    prefixes = ["/usr", "/usr/local", *listed("CMAKE_PREFIX_PATH")]
    prefixes += [os.path.dirname(os.path.normpath(folder)) for folder in listed("PATH")]
    folders = [*listed("CMAKE_INCLUDE_PATH"), *(f"{prefix}/include" for prefix in prefixes)]
    configured = (build_folder() / "CMakeCache.txt").exists()
    return configured or any(pathlib.Path(folder, name).is_file() for folder in folders)


def check_tools():
    """Names all that is missing in one line, before anything is built."""
    c = compiler_of("CC", *shlex.split(sysconfig.get_config_var("CC") or "cc")[:1])
    needs = [  # what, whether it is there, Debian's package
        (c[0], runs(*c), "g++"),
        ("swig", runs("swig"), "swig"),
        ("Python.h", finds_python(), "python3-dev"),
    ]
    if builds_library():
        cxx = compiler_of("CXX", "c++", "g++", "clang++")
        needs += [
            (cxx[0], runs(*cxx), "g++"),
            ("cmake", runs("cmake"), "cmake"),
            ("ninja", runs("ninja", "make", "gmake"), "ninja-build"),
            ("xxhash.h", finds_header("xxhash.h"), "libxxhash-dev"),
            ("nlohmann/json.hpp", finds_header("nlohmann/json.hpp"), "nlohmann-json3-dev"),
        ]
    elif TREE is None or not os.environ.get("KVC_BUILD_DIR"):
        needs.append(("pkg-config", runs("pkg-config"), "pkg-config"))
    missing = {what: package for what, found, package in needs if not found}
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        fail(f"missing: {', '.join(missing)} (Debian: apt-get install {packages})")


def ask_pkg_config(*query):
    """The words that pkg-config prints about the installed kvc."""
    if not runs("pkg-config"):
        check_tools()
    command = ["pkg-config", *query, "kvc"]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        fail(
            "pkg-config finds no kvc: install it and add its lib/pkgconfig to PKG_CONFIG_PATH, or "
            f"build inside its source tree\n{os.fsdecode(result.stderr)}"
        )
    # It quotes as a shell does, but each byte of a letter that is not ASCII by itself.
    words = shlex.split(result.stdout.decode("latin-1"))
    return [os.fsdecode(word.encode("latin-1")) for word in words]


def from_pkg_config():
    """(include folders, library folders, library to ship) of an installed kvc."""
    words = ask_pkg_config("--cflags-only-I", "--libs-only-L")
    includes = [os.path.normpath(word[2:]) for word in words if word.startswith("-I")]
    if not includes:  # pkg-config omits system folders
        includes = ask_pkg_config("--variable=includedir")
    folders = [os.path.normpath(word[2:]) for word in words if word.startswith("-L")]
    return includes, folders, None


def from_build(folder):
    """(include folders, library folders, library to ship) of a CMake build of the sources."""
    if TREE is None:
        fail("KVC_BUILD_DIR needs the sources of libkvc around this folder")
    library = folder / "lib" / "libkvc.so"
    if not library.exists():
        fail(f"there is no {library}: build it with cmake --build {shlex.quote(str(folder))}")
    return [str(TREE / "capi" / "include")], [str(folder / "lib")], library.resolve()


def build_tree():
    """Builds libkvc, with the generator that its folder was configured with."""
    folder = build_folder()
    configure = ["cmake", "-S", str(TREE), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    if not (folder / "CMakeCache.txt").exists() and shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    jobs = str(os.cpu_count() or 1)
    build = ["cmake", "--build", str(folder), "--target", "kvc", "--parallel", jobs]
    for command in (configure, build):
        if subprocess.run(command, check=False).returncode != 0:
            fail(f"libkvc could not be built; this failed: {shlex.join(command)}")
    return folder


def find_library():
    if os.environ.get("KVC_BUILD_DIR"):
        # pip runs this file in its own folder; the shell's PWD is still where the user is.
        here = os.environ.get("PWD") or os.getcwd()
        return from_build(pathlib.Path(here, os.environ["KVC_BUILD_DIR"]).resolve())
    return from_build(build_tree()) if builds_library() else from_pkg_config()


def header_version():
    """The version in base.h, of the sources or of an installed library."""
    folders = [TREE / "capi" / "include"] if TREE else map(pathlib.Path, from_pkg_config()[0])
    for folder in folders:
        header = folder / "kvc" / "base.h"
        if header.is_file():
            found = re.findall(
                r"^#define KVC_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)",
                header.read_text(encoding="utf-8"),
                re.M,
            )
            return ".".join(found)
    fail("kvc/base.h is not where pkg-config says")


class BuildPackage(build_py):
    """Copies the modules into a folder without those of an earlier build, which may be gone."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(pathlib.Path(self.build_lib) / "kvc", ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Runs SWIG, so that generated files stay out of the source tree, unless setuptools builds in
    place: for an editable installation."""

    def run(self):
        self.in_place = bool(self.inplace)  # the base class clears it while it builds
        super().run()

    def build_extension(self, ext):
        check_tools()
        includes, folders, shipped = find_library()
        package = pathlib.Path(self.get_ext_fullpath(ext.name)).parent
        package.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(self.build_temp)
        scratch.mkdir(parents=True, exist_ok=True)
        wrapper = scratch / f"{MODULE}_wrap.c"
        subprocess.run(
            ["swig", "-python", "-builtin", "-threads", "-Wall"]
            + [f"-I{folder}" for folder in includes]
            + ["-outdir", str(package), "-o", str(wrapper), str(HERE / "src" / f"{MODULE}.i")],
            check=True,
        )
        ext.sources = [str(wrapper)]
        ext.include_dirs = [*includes, str(HERE / "src")]
        ext.library_dirs = folders
        if shipped is not None and not self.in_place:
            # Under its SONAME, by which the loader looks it up.
            soname = shipped.parent / ".".join(shipped.name.split(".")[:3])
            shutil.copyfile(shipped, package / soname.name)
            ext.runtime_library_dirs = ["$ORIGIN"]
        else:
            ext.runtime_library_dirs = folders
        super().build_extension(ext)

    def copy_extensions_to_source(self):
        """An editable installation imports from the source folder, which lacks SWIG's module."""
        super().copy_extensions_to_source()
        self.copy_file(str(self._module_in(self.build_lib)), str(self._module_in(HERE)))

    def get_outputs(self):
        return [*super().get_outputs(), str(self._module_in(self.build_lib))]

    def get_output_mapping(self):
        mapping = super().get_output_mapping()
        if self.inplace:
            mapping[str(self._module_in(self.build_lib))] = str(self._module_in(HERE))
        return mapping

    def _module_in(self, top):
        return pathlib.Path(top) / "kvc" / f"{MODULE}.py"


class SourceDistribution(sdist):
    """Adds the sources of libkvc, so that the distribution builds by itself."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        if TREE is None:
            fail("a source distribution needs the sources of libkvc around this folder")
        place = pathlib.Path(base_dir) / "libkvc"
        place.mkdir()
        for name in LIBRARY_SOURCES:
            source = TREE / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, place / name)
        license_text = pathlib.Path(base_dir) / "LICENSE"  # a link out of this folder
        license_text.unlink()
        shutil.copy2(TREE / "LICENSE", license_text)


setup(
    version=header_version(),
    ext_modules=[
        Extension(
            f"kvc._{MODULE}",
            sources=[],
            depends=[f"src/{MODULE}.i", *(f"src/{path.name}" for path in HERE.glob("src/*.h"))],
            libraries=["kvc"],
            extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
        )
    ],
    cmdclass={
        "build_ext": BuildExtension,
        "build_py": BuildPackage,
        "sdist": SourceDistribution,
    },
)
