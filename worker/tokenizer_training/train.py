"""Trains a tokenizer: reads the corpus once, keeps a sample of each language, and trains SentencePiece on the sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from state.data_manifest import LARGEST_16_BIT_VOCABULARY, Recipe
from state.errors import DataError, UserError
from state.files import write_atomically
from state.quantities import format_size
from worker.corpus.cleaning import clean
from worker.corpus.documents import CorpusDocuments
from worker.corpus.progress import PrepareProgress, Silent
from worker.corpus.sources import not_read
from worker.tokenizer.model_file import parse_model
from worker.tokenizer.tokenizer import load_tokenizer
from worker.tokenizer_training.options import TrainingOptions
from worker.tokenizer_training.process import RefusedError, train_in_child
from worker.tokenizer_training.sample import LanguageSample, TextSample

_SMALLEST_VOCABULARY = 4 + 256 + 1  # special pieces, bytes, and one more
_TOO_SMALL = re.compile(r"smaller than required_chars\. (\d+) vs (\d+)")
_TRAINERS_MARK = "\u2585"
"""SentencePiece's mark for `unknown`. The trainer skips, without a warning, every sentence that contains this character."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """A trained tokenizer: its file, and the sample that it was trained on."""

    path: Path
    vocab_size: int
    languages: Mapping[str, LanguageSample]


def train_tokenizer(
    corpora: Sequence[Path],
    out: Path,
    options: TrainingOptions,
    recipe: Recipe,
    *,
    replace: bool = False,
    progress: PrepareProgress | None = None,
) -> TrainedTokenizer:
    """Train a SentencePiece model on a sample of a corpus and write it. The same corpus and options give the same bytes.

    Args:
        corpora: Corpus folders.
        out: The model file to write.
        options: Size of the vocabulary and of the sample.
        recipe: Defines what a document is, and how its text is cleaned.
        replace: Whether an existing file may be replaced.
        progress: Receives the progress.

    Raises:
        UserError: an option is out of range or does not fit the corpus, or `out` cannot be written.
        DataError: the corpus cannot be read, or has no text.
        TemporaryError: the process that trains was killed.
    """
    progress = progress or Silent()
    _check_options(options)
    _check_out(out, replace=replace)
    sample = _sample(corpora, options, recipe, progress)
    languages = sample.summary()
    sampled_bytes = sum(language.sampled_bytes for language in languages.values())
    if not sampled_bytes:
        raise DataError("the corpus has no text to train on", remedy="add documents, or give another --corpus")
    progress.say(f"training on a sample of {format_size(sampled_bytes)}; SentencePiece does not tell how far it is")
    model = _train(_without_mark(sample.drain()), options, progress)
    try:
        write_atomically(out, model)
    except OSError as error:
        raise _cannot_write(out, error) from error
    return TrainedTokenizer(out, load_tokenizer(out).vocab_size, languages)


def _check_options(options: TrainingOptions) -> None:
    if options.vocab_size > LARGEST_16_BIT_VOCABULARY:
        raise UserError(
            f"--vocab-size {options.vocab_size:,} is too large",
            expected=f"at most {LARGEST_16_BIT_VOCABULARY:,}, so that a token takes 16 bits in the shards: more would double"
            " their size, and the embedding of a small model would be most of it",
            remedy=f"--vocab-size {LARGEST_16_BIT_VOCABULARY} or less; {TrainingOptions().vocab_size} suits a few languages",
        )
    if options.vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab-size {options.vocab_size} is too small",
            expected="more than 260, which are the 4 special pieces and the 256 bytes",
            remedy=f"--vocab-size {TrainingOptions().vocab_size}",
        )
    if not 0.0 <= options.alpha <= 1.0:
        raise UserError(
            f"--alpha {options.alpha:g} is out of range",
            expected="from 0 (all languages alike) to 1 (in proportion to their text)",
        )
    if not 0.9 <= options.character_coverage <= 1.0:
        raise UserError(
            f"--character-coverage {options.character_coverage:g} is out of range", expected="from 0.9 to 1 (every character)"
        )


def _check_out(out: Path, *, replace: bool) -> None:
    try:
        is_there, is_folder, has_folder = out.exists(), out.is_dir(), out.parent.is_dir()
    except OSError as error:
        raise _cannot_write(out, error) from error
    if is_folder:
        raise UserError(f"{out} is a folder", expected="the name of a file", remedy=f"--out {out / 'tokenizer.model'}")
    if is_there and not replace:
        raise UserError(f"{out} exists", remedy="choose another --out, or add --replace when no data was prepared with it")
    if not has_folder:
        raise UserError(f"the folder {out.parent} does not exist", remedy=f"mkdir -p {out.parent}")


def _sample(corpora: Sequence[Path], options: TrainingOptions, recipe: Recipe, progress: PrepareProgress) -> TextSample:
    sample = TextSample(options.sample_bytes, options.alpha)
    documents = CorpusDocuments(corpora, recipe)
    if documents.ignored:
        progress.say(not_read(documents.ignored))
    progress.stage("reading", documents.num_bytes)
    for record in documents.read(progress):
        cleaned = clean(record.text, recipe)
        if cleaned.dropped is None:
            sample.add(record.language, cleaned.text)
    if documents.passed_over:
        progress.say(f"passed over: {documents.passed_over}")
    return sample


def _without_mark(texts: Iterator[bytes]) -> Iterator[bytes]:
    mark = _TRAINERS_MARK.encode()
    for text in texts:
        yield text.replace(mark, b" ")


def _train(texts: Iterator[bytes], options: TrainingOptions, progress: PrepareProgress) -> bytes:
    try:
        model = train_in_child(
            texts,
            options.vocab_size,
            character_coverage=options.character_coverage,
            waiting=lambda: progress.say("still training"),
        )
    except RefusedError as error:
        raise _refused(options, str(error)) from error
    num_pieces = len(parse_model(model).pieces)
    if num_pieces < options.vocab_size:
        raise UserError(
            f"--vocab-size {options.vocab_size:,} is too large for this corpus",
            expected=f"at most {num_pieces:,}: no more pieces occur in its text",
            remedy=f"--vocab-size {num_pieces} or less, better a tenth of it; or more text",
        )
    return model


def _refused(options: TrainingOptions, words: str) -> UserError:
    if match := _TOO_SMALL.search(words):
        return UserError(
            f"--vocab-size {options.vocab_size:,} is too small for this corpus",
            expected=f"at least {int(match[2]):,}, which are its characters, the 256 bytes and the 4 special pieces",
            remedy=f"--vocab-size {TrainingOptions().vocab_size}, or a --character-coverage below {options.character_coverage:g}",
        )
    return UserError(f"SentencePiece cannot train on this corpus: {words}")


def _cannot_write(out: Path, error: OSError) -> UserError:
    return UserError(f"{out} cannot be written ({error.strerror})", remedy="make room, or choose another --out")
