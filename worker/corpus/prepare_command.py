"""`gemma-orch prepare`: its options and its help, which need no training extra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from state.data_manifest import Recipe, language_problem
from state.errors import ExitCode, UserError
from state.quantities import format_size, numbers_by_language, parse_size_bytes
from worker.cli import VerbParser, parsed_by, write_out
from worker.corpus.reading_options import add_reading

_DEFAULTS = Recipe()
_EPILOG = """\
A corpus is a folder with one folder per language; in it .jsonl, .txt (also .gz or .zst) and .parquet, at any depth.
Killed at any moment, the same command goes on, and ends with the same bytes. What it left out it counts and names:
see report.json in the data folder. gemma-orch start --data DIR trains on it.
"""


def main(arguments: Sequence[str]) -> int:
    """Run `python -m worker prepare`: messages on stderr, with --json the manifest on stdout.

    Raises:
        GemmaOrchError: an option is invalid, or `prepare` failed; the caller prints it.
    """
    options = parser().parse(arguments)
    recipe = recipe_of(options)
    from worker.corpus.prepare import prepare
    from worker.corpus.progress import terminal_progress
    from worker.corpus.report import summary
    from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path

    with terminal_progress() as progress:
        manifest = prepare(
            options.corpus or [sample_corpus_dir()],
            options.tokenizer or sample_tokenizer_path(),
            options.out,
            recipe,
            num_workers=options.workers,
            replace=options.replace,
            progress=progress,
        )
    sys.stderr.write(f"{summary(manifest, options.out)}\n")
    if options.json:
        write_out(manifest.to_json().decode())
    return ExitCode.DONE


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe that the options ask for.

    Raises:
        UserError: one is out of range.
    """
    share, shares = _validation(options.validation)
    fields = {
        "text_field": options.text_field,
        "language_field": options.language_field,
        "text_documents": options.text_documents,
        "nfc": not options.no_nfc,
        "strip_control": not options.keep_control,
        "deduplicate": not options.keep_duplicates,
        "min_characters": options.min_characters,
        "max_document_bytes": options.max_document_size,
        "max_malformed_share": options.max_malformed,
        "validation_share": share,
        "validation_shares": shares,
        "shard_bytes": options.shard_size,
        "max_part_bytes": options.max_part_size,
    }
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(
            "\n".join(_problem(str(problem["loc"][0]), problem["msg"]) for problem in error.errors()),
            remedy="gemma-orch prepare --help",
        ) from error


_OPTION_OF_FIELD = {
    "max_document_bytes": "--max-document-size",
    "max_malformed_share": "--max-malformed",
    "validation_share": "--validation",
    "validation_shares": "--validation",
    "shard_bytes": "--shard-size",
    "max_part_bytes": "--max-part-size",
}


def _problem(field: str, message: str) -> str:
    option = _OPTION_OF_FIELD.get(field, f"--{field.replace('_', '-')}")
    return f"{option}: {message[:1].lower()}{message[1:]}{' (in bytes)' if option.endswith('size') else ''}"


def _validation(texts: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return (share of all languages, shares of single languages) from texts such as `0.005` and `konkani=0.02`."""
    general = [text for text in texts if "=" not in text]
    if len(general) > 1:
        raise UserError(f"--validation is given as {' and as '.join(general)}", expected="one share for all languages")
    shares = numbers_by_language("--validation", [text for text in texts if "=" in text])
    for language, share in shares.items():
        if problem := language_problem(language):
            raise UserError(f"--validation: {language!r} cannot name a language: {problem}")
        _check_share(f"{language}={share}", share)
    if not general:
        return _DEFAULTS.validation_share, shares
    try:
        share = float(general[0])
    except ValueError as error:
        raise UserError(
            f"--validation {general[0]!r} is no share", expected="a number such as 0.005, or a language and one: konkani=0.02"
        ) from error
    _check_share(general[0], share)
    return share, shares


def _check_share(text: str, share: float) -> None:
    if not 0.0 <= share < 1.0:
        raise UserError(f"--validation {text} is no share", expected="0 (hold nothing out) or more, and less than 1")


def parser() -> VerbParser:
    """Return the parser of the options, with the defaults of `Recipe`."""
    verb = VerbParser("prepare", "Encode a corpus into token shards, in parallel and restartable.", epilog=_EPILOG)
    verb.add_argument(
        "--corpus", type=Path, action="extend", nargs="+", metavar="DIR", help="folders of text; none: the sample corpus"
    )
    verb.add_argument("--tokenizer", type=Path, metavar="FILE", help="a SentencePiece model; none: the sample's")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data folder to make")
    verb.add_argument("--workers", type=_positive, metavar="N", help="processes that encode; none: one a core")
    verb.add_argument("--replace", action="store_true", help="replace what the data folder holds, when it is other data")
    verb.add_argument("--json", action="store_true", help="print the manifest on stdout")
    _add_reading(verb.add_argument_group("reading"))
    _add_cleaning(verb.add_argument_group("cleaning", "each rule counts what it changes or drops, per source"))
    _add_layout(verb.add_argument_group("holding out and layout"))
    return verb


def _add_reading(group: argparse._ArgumentGroup) -> None:
    add_reading(group)
    group.add_argument(
        "--max-malformed",
        type=float,
        default=_DEFAULTS.max_malformed_share,
        metavar="SHARE",
        help="refuse a corpus in which more of the records have no usable text (default: %(default)s)",
    )


def _add_cleaning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--no-nfc", action="store_true", help="do not bring text into Unicode's composed form (NFC)")
    group.add_argument("--keep-control", action="store_true", help="keep control characters")
    group.add_argument("--keep-duplicates", action="store_true", help="keep documents whose text came before, in any source")
    group.add_argument(
        "--min-characters",
        type=int,
        default=_DEFAULTS.min_characters,
        metavar="N",
        help="drop shorter documents (default: %(default)s)",
    )


def _add_layout(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--validation",
        action="append",
        default=[],
        metavar="SHARE|LANGUAGE=SHARE",
        help=f"share of the documents to hold out, of all languages or one; repeatable (default: {_DEFAULTS.validation_share})",
    )
    group.add_argument(
        "--shard-size",
        type=parsed_by(parse_size_bytes),
        default=_DEFAULTS.shard_bytes,
        metavar="SIZE",
        help=f"size of a full shard (default: {format_size(_DEFAULTS.shard_bytes)})",
    )
    group.add_argument(
        "--max-part-size",
        type=parsed_by(parse_size_bytes),
        metavar="SIZE",
        help="lay the shards out in folders of at most this size (default: in one)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)
