"""Writes a small data folder of given tokens, as `prepare` would: shards, their indices, the blocks' digests, data.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from state.data_manifest import (
    BLOCK_TOKENS,
    DataManifest,
    LanguageData,
    Shard,
    ShardIndex,
    Source,
    SourceShare,
    TokenStream,
    num_blocks,
    token_bytes_for,
)

NOBODY_SHA256 = hashlib.sha256(b"").hexdigest()


def write_data(
    folder: Path,
    languages: Mapping[str, ArrayLike],
    *,
    shard_tokens: int = 100_000,
    document_tokens: int = 50,
    vocab_size: int = 50_000,
    validation: Mapping[str, ArrayLike] | None = None,
    tokenizer_sha256: str = NOBODY_SHA256,
) -> DataManifest:
    """Write a data folder and return its manifest.

    Args:
        folder: Made when it is not there.
        languages: Tokens of each language's stream.
        shard_tokens: Tokens of a full shard.
        document_tokens: A document begins at each multiple of this; document d is record d + 1 of the language's one
            source, `LANGUAGE/00.jsonl`.
        vocab_size: Above 65 536, tokens take 32 bits.
        validation: Tokens that are held out; their records follow those that are trained on.
        tokenizer_sha256: As the manifest shall say; no tokenizer is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = validation or {}
    token_bytes = token_bytes_for(vocab_size)
    made, sources = {}, []
    for number, (name, values) in enumerate(languages.items()):
        writer = _Writer(folder, number, np.dtype(f"<u{token_bytes}"), shard_tokens, document_tokens)
        tokens = np.asarray(values)
        stream = writer.stream(f"{name}.train", tokens, first_record=1)
        records = stream["num_documents"]
        kept = None
        if name in held_out:
            kept = TokenStream(**writer.stream(f"{name}.validation", np.asarray(held_out[name]), first_record=records + 1))
            records += kept.num_documents
        share = SourceShare(
            source=number,
            num_documents=stream["num_documents"],
            num_tokens=len(tokens),
            num_held_out=kept.num_documents if kept else 0,
        )
        made[name] = LanguageData(**stream, validation=kept, sources=(share,))
        sources.append(Source(corpus=0, name=f"{name}/00.jsonl", num_bytes=1, sha256=NOBODY_SHA256, num_records=records))
    manifest = DataManifest.sealed(
        token_bytes=token_bytes,
        vocab_size=vocab_size,
        bos_id=2,
        eos_id=1,
        pad_id=0,
        unk_id=3,
        tokenizer_sha256=tokenizer_sha256,
        languages=made,
        sources=tuple(sources),
    )
    (folder / "data.json").write_bytes(manifest.to_json())
    return manifest


class _Writer:
    """Writes one language's streams."""

    def __init__(self, folder: Path, source: int, dtype: np.dtype[Any], shard_tokens: int, document_tokens: int) -> None:
        self.folder = folder
        self.source = source
        self.dtype = dtype
        self.shard_tokens = shard_tokens
        self.document_tokens = document_tokens

    def stream(self, name: str, values: NDArray[Any], *, first_record: int) -> dict[str, Any]:
        """Write a stream's shards and indices; return its fields."""
        tokens = values.astype(self.dtype)
        starts = range(0, len(tokens), self.shard_tokens)
        return {
            "num_documents": -(-len(tokens) // self.document_tokens),
            "num_tokens": len(tokens),
            "num_bytes_text": len(tokens),
            "shards": tuple(self._shard(f"{name}-{n:05d}", tokens, start, first_record) for n, start in enumerate(starts)),
            "blocks": block_digests(tokens),
        }

    def _shard(self, name: str, tokens: NDArray[Any], start: int, first_record: int) -> Shard:
        data = tokens[start : start + self.shard_tokens].tobytes()
        end = start + len(data) // self.dtype.itemsize
        documents = np.arange(-(-start // self.document_tokens), -(-end // self.document_tokens))
        columns = [documents * self.document_tokens - start, np.full_like(documents, self.source), documents + first_record]
        index = np.stack(columns, axis=1).astype("<u4").tobytes()
        (self.folder / f"{name}.tokens").write_bytes(data)
        (self.folder / f"{name}.documents").write_bytes(index)
        return Shard(
            name=f"{name}.tokens",
            num_tokens=end - start,
            sha256=hashlib.sha256(data).hexdigest(),
            index=ShardIndex(name=f"{name}.documents", num_documents=len(documents), sha256=hashlib.sha256(index).hexdigest()),
        )


def block_digests(tokens: NDArray[Any]) -> tuple[str, ...]:
    """Return the digest of each block and the one token after it."""
    return tuple(
        hashlib.sha256(tokens[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS + 1].tobytes()).hexdigest()
        for block in range(num_blocks(len(tokens)))
    )
