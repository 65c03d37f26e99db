"""Small corpora, and what a preparation makes of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from state.data_manifest import DataManifest, Recipe, TokenStream
from worker.corpus.shipped import sample_tokenizer_path
from worker.tokenizer.tokenizer import load_tokenizer

MODEL = sample_tokenizer_path()
ALL = Recipe(validation_share=0.0)


def write_lines(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def texts(*values: str) -> list[str]:
    return [json.dumps({"text": value}) for value in values]


def small_corpus(root: Path) -> Path:
    """Write two languages of a few documents each."""
    write_lines(root / "hindi" / "b.jsonl", *texts("नमस्ते दुनिया", "दूसरा"))
    write_lines(root / "hindi" / "a.jsonl", *texts("पहला"))
    write_lines(root / "english" / "x.jsonl", *texts("the sea", "the rain", "a boat"))
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tokens_of(folder: Path, manifest: DataManifest, stream: TokenStream | None) -> list[int]:
    if stream is None:
        return []
    tokens: list[int] = np.concatenate(
        [np.fromfile(folder / shard.name, f"<u{manifest.token_bytes}") for shard in stream.shards]
    ).tolist()
    return tokens


def encoded(*values: str) -> list[int]:
    encode = load_tokenizer(MODEL).processor.encode
    return list(itertools.chain.from_iterable([2, *encode(value), 1] for value in values))


class Listener:
    """Keeps what a preparation says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.advanced = self.total = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, num_bytes: int, num_tokens: int = 0) -> None:
        self.advanced += num_bytes
