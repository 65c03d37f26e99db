"""Raw text to a data folder: reads documents, encodes them, writes token shards and, last, the manifest."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from state.data_manifest import TOKENIZER_NAME, DataManifest, LanguageData, SkippedLine, token_bytes_for
from state.errors import DataError, UserError
from state.files import remove_tree, sha256_of_file, write_atomically
from state.layout import DATA_MANIFEST_NAME
from worker.corpus.reader import MAX_PLACES, DocumentReader, SourceFile, Sources, find_sources
from worker.corpus.shards import DEFAULT_SHARD_BYTES, ShardWriter
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.corpus.staging import staged_folder
from worker.corpus.tokenizer import Tokenizer, load_tokenizer

MAX_MALFORMED_SHARE = 0.01
_BATCH_DOCUMENTS = 2048  # threads of the encoder pay off from about a thousand documents a call
_BATCH_CHARACTERS = 8 * 1024 * 1024  # bounds the memory when documents are whole books
_PLACES_IN_MESSAGE = 5

Say = Callable[[str], None]


def prepare(
    corpus: Sequence[Path],
    tokenizer: Path,
    out: Path,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    num_threads: int | None = None,
    replace: bool = False,
    say: Say = lambda _: None,
) -> DataManifest:
    """Make a data folder from corpus folders; the same call again, after a kill or not, ends with the same bytes.

    Args:
        corpus: Folders with JSONL files in a folder for each language.
        tokenizer: A SentencePiece model.
        out: The data folder. When it holds the data of this very corpus and tokenizer already, nothing is done.
        shard_bytes: Size of a full shard.
        num_threads: Threads of the encoder; None: one for each core.
        replace: Whether what `out` holds gives way when it is not this very data, whole; for a run's own folder.
        say: Told in plain lines what happens.

    Returns:
        The manifest, which lies in the folder as well.

    Raises:
        UserError: the corpus, the tokenizer or `out` cannot be used, or the disk is full.
        DataError: a file cannot be read, a language has no text, or more than 1 % of the lines are malformed.
        TemporaryError: another process is making the same folder.
    """
    model = load_tokenizer(tokenizer)
    sources = find_sources(corpus)
    if sources.ignored:
        say(f"not read, as these are no .jsonl files: {', '.join(sources.ignored)}")
    out = out.resolve()
    try:
        present = _already_prepared(out, sources, model)
    except (UserError, DataError):
        if not replace:
            raise
        remove_tree(out)
        present = None
    if present is not None:
        say(f"{out} holds this data already")
        return present
    try:
        with staged_folder(out) as staging:
            manifest = _write(staging, sources, model, shard_bytes, num_threads or os.cpu_count() or 1, say)
    except OSError as error:  # reading errors are DataErrors by now
        raise UserError(
            f"{out} cannot be written ({error.strerror})",
            remedy="make room or choose another --out; then the same command again",
        ) from error
    return manifest


def _write(folder: Path, sources: Sources, model: Tokenizer, shard_bytes: int, num_threads: int, say: Say) -> DataManifest:
    token_bytes = token_bytes_for(model.vocab_size)
    languages: dict[str, LanguageData] = {}
    skipped: list[SkippedLine] = []
    for language, files in sources.by_language.items():
        writer = ShardWriter(folder, language, token_bytes=token_bytes, shard_bytes=shard_bytes)
        with contextlib.closing(writer):
            languages[language], places = _encode(files, model, writer, num_threads)
        skipped += places
    _check_malformed(languages, skipped)
    manifest = DataManifest.sealed(
        token_bytes=token_bytes,
        vocab_size=model.vocab_size,
        bos_id=model.bos_id,
        eos_id=model.eos_id,
        pad_id=model.pad_id,
        unk_id=model.unk_id,
        tokenizer_sha256=model.sha256,
        languages=languages,
        first_skipped=tuple(skipped[:MAX_PLACES]),
    )
    write_atomically(folder / TOKENIZER_NAME, model.model_bytes)
    write_atomically(folder / DATA_MANIFEST_NAME, manifest.to_json())
    return manifest


def _encode(
    files: Sequence[SourceFile], model: Tokenizer, writer: ShardWriter, num_threads: int
) -> tuple[LanguageData, list[SkippedLine]]:
    """Write one language's tokens; return what was written, and the first places where lines were left out."""
    readers = [DocumentReader(file) for file in files]
    num_bytes_text = num_tokens = 0
    for texts in _batches(itertools.chain.from_iterable(reader.texts() for reader in readers)):
        ids = model.encode_documents(texts, num_threads)
        tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.uint32, count=sum(map(len, ids)))
        writer.append(tokens)
        num_tokens += len(tokens)
        num_bytes_text += sum(len(text.encode("utf-8")) for text in texts)
    summaries = tuple(reader.summary() for reader in readers)
    skipped = [place for reader in readers for place in reader.first_skipped]
    num_documents = sum(summary.num_documents for summary in summaries)
    if not num_documents:
        raise DataError(
            f"{files[0].language!r} has no usable line in {len(files)} files{_places(skipped)}",
            expected='lines such as {"text": "..."}',
            remedy="add text, or take the language out of the corpus folder",
        )
    data = LanguageData(
        num_documents=num_documents,
        num_tokens=num_tokens,
        num_bytes_text=num_bytes_text,
        shards=writer.finish(),
        sources=summaries,
    )
    return data, skipped


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _check_malformed(languages: dict[str, LanguageData], skipped: Sequence[SkippedLine]) -> None:
    num_lines = sum(language.num_lines for language in languages.values())
    num_skipped = sum(sum(language.skipped.values()) for language in languages.values())
    if num_skipped > MAX_MALFORMED_SHARE * num_lines:
        raise DataError(
            f"{num_skipped} of {num_lines} lines are malformed{_places(skipped)}",
            expected=f"at most {MAX_MALFORMED_SHARE:.0%}",
            remedy='write each document as one line {"text": "..."} in UTF-8',
        )


def _places(skipped: Sequence[SkippedLine]) -> str:
    return "".join(f"\n  {place}" for place in skipped[:_PLACES_IN_MESSAGE])


def _already_prepared(out: Path, sources: Sources, model: Tokenizer) -> DataManifest | None:
    """Return the manifest in `out` when it is of these files and this tokenizer, None when nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    path = out / DATA_MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{out} exists and holds no prepared data", remedy="choose another --out")
    manifest = DataManifest.from_json(path.read_bytes(), str(path))
    present = {
        language: [(source.corpus, source.name, source.sha256) for source in data.sources]
        for language, data in manifest.languages.items()
    }
    wanted = {
        language: [(file.corpus, file.name, _sha256_of_source(file)) for file in files]
        for language, files in sources.by_language.items()
    }
    if present != wanted or manifest.tokenizer_sha256 != model.sha256:
        raise UserError(
            f"{out} holds data of {'another corpus' if present != wanted else 'another tokenizer'}",
            remedy="choose another --out, or remove the folder when no run needs it",
        )
    for language in manifest.languages.values():
        for shard in language.shards:
            file = out / shard.name
            if not file.is_file() or file.stat().st_size != shard.num_tokens * manifest.token_bytes:
                raise DataError(
                    f"the shard {file} is missing or truncated", remedy=f"remove {out} and run the same command again"
                )
    return manifest


def _sha256_of_source(file: SourceFile) -> str:
    try:
        return sha256_of_file(file.path)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read ({error.strerror})", remedy="make it readable") from error


def summary(manifest: DataManifest) -> str:
    """Return what a data folder holds, as a table for people, with every line that was left out accounted for."""
    rows = [("language", "documents", "tokens", "text bytes", "bytes/token", "skipped lines")]
    for name, data in sorted(manifest.languages.items()):
        skipped = ", ".join(f"{count} {reason}" for reason, count in data.skipped.items()) or "0"
        rows.append(
            (
                name,
                f"{data.num_documents:,}",
                f"{data.num_tokens:,}",
                f"{data.num_bytes_text:,}",
                f"{data.num_bytes_text / data.num_tokens:.2f}",
                skipped,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]) for row in rows]
    return "\n".join([*lines, *(f"skipped: {place}" for place in manifest.first_skipped)])


def main(argv: Sequence[str]) -> int:
    """Run `python -m worker prepare`: talk on stderr, with --json the manifest on stdout.

    Raises:
        GemmaOrchError: as `prepare` does; the caller prints it.
    """
    parser = argparse.ArgumentParser(prog="python -m worker prepare", description="Encode a corpus into token shards.")
    parser.add_argument(
        "--corpus",
        type=Path,
        action="extend",
        nargs="+",
        metavar="DIR",
        help="folders with JSONL in a folder per language (default: the sample)",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a SentencePiece model (default: the sample's)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data folder to make")
    parser.add_argument("--replace", action="store_true", help="replace what the data folder holds, when it is other data")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    options = parser.parse_args(argv)
    manifest = prepare(
        options.corpus or [sample_corpus_dir()],
        options.tokenizer or sample_tokenizer_path(),
        options.out,
        replace=options.replace,
        say=lambda line: print(line, file=sys.stderr),  # noqa: T201
    )
    print(summary(manifest), file=sys.stderr)  # noqa: T201
    if options.json:
        sys.stdout.write(manifest.to_json().decode())
    return 0
