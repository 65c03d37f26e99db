"""A corpus of any size: the texts of a small one over and over, each time with some of its words replaced by others.

The words that come in are drawn from the same file, so that the text keeps its language, its script and the frequencies of
its words, and every repetition of a document has a number that none has had before: no two documents are equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_REPLACED_SHARE = 0.05  # of the words
_SHARED = Path(__file__).parents[2] / "shared" / "corpus"
_SAMPLE = Path(__file__).parents[1] / "worker" / "corpus" / "sample" / "text"


@dataclass(frozen=True)
class Original:
    """The small corpus.

    Attributes:
        folder: Has a folder for each language.
        tokenizer: A SentencePiece model of its languages.
    """

    folder: Path
    tokenizer: Path


def original() -> Original:
    """Return the real corpus where it lies beside the repository, else the sample that is shipped."""
    if _SHARED.is_dir():
        return Original(_SHARED, _SHARED / "multilingual.model")
    return Original(_SAMPLE, next(_SAMPLE.parent.glob("*.model")))


def write_corpus(folder: Path, num_bytes: int, source: Path) -> int:
    """Write a corpus of at least so many bytes, with the files of `source`, each in its share; return its size."""
    files = {path.relative_to(source): _words_of(path) for path in sorted(source.glob("*/*.jsonl"))}
    written = 0
    for name in files:
        (folder / name.parent).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    repetition = 0
    while written < num_bytes:
        for number, (name, documents) in enumerate(files.items()):
            with open(folder / name, "ab") as file:
                for line in _changed(documents, repetition, number):
                    written += file.write(line)
        repetition += 1
    return written


def _words_of(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["text"].split(" ") for line in file]


def _changed(documents: list[list[str]], repetition: int, number: int) -> Iterator[bytes]:
    """Yield the lines of one repetition of a file."""
    draw = np.random.default_rng([repetition, number])
    pool = [word for words in documents for word in words]
    for place, words in enumerate(documents):
        changed = list(words)
        size = int(len(words) * _REPLACED_SHARE)
        for at, taken in zip(
            draw.integers(len(words), size=size).tolist(), draw.integers(len(pool), size=size).tolist(), strict=True
        ):
            changed[at] = pool[taken]
        changed.insert(int(draw.integers(len(words) + 1)), f"{repetition}.{number}.{place}")
        yield json.dumps({"text": " ".join(changed)}, ensure_ascii=False).encode() + b"\n"
