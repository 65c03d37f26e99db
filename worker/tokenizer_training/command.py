"""`gemma-orch tokenizer train|report|check`: options and help of the three verbs, which need no training extra."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from state.data_manifest import Recipe
from state.errors import ExitCode, UserError, did_you_mean
from state.quantities import format_size, parse_size_bytes
from worker.cli import VerbParser, parsed_by
from worker.corpus.reading_options import add_reading
from worker.tokenizer_training.options import TrainingOptions

_HELP = """\
usage: gemma-orch tokenizer VERB ...

  train    train a SentencePiece model on a corpus
  report   count what a model makes of a corpus, per language
  check    say whether a model can be used, and what it does to text

gemma-orch tokenizer VERB --help tells more.
"""
_OPTION_OF_FIELD = {"max_document_bytes": "--max-document-size", "max_malformed_share": "--max-malformed"}
_TRAINING = TrainingOptions()
_TABLE_WIDTH = 110  # if the width of the terminal is unknown


def main(argv: Sequence[str]) -> int:
    """Run `python -m worker tokenizer`: data on stdout, messages on stderr.

    Raises:
        GemmaOrchError: the caller prints it.
    """
    verbs: dict[str, Callable[[Sequence[str]], int]] = {"train": _train, "report": _report, "check": _check}
    verb = argv[0] if argv else "--help"
    if verb in ("--help", "-h"):
        sys.stdout.write(_HELP)
        return ExitCode.DONE
    if verb not in verbs:
        raise UserError(
            f"there is no verb tokenizer {verb}",
            expected=f"one of {', '.join(verbs)}",
            remedy=did_you_mean(verb, list(verbs)) or "gemma-orch tokenizer --help",
        )
    return verbs[verb](argv[1:])


def _train(argv: Sequence[str]) -> int:
    options = _train_parser().parse(argv)
    from worker.corpus.progress import terminal_progress
    from worker.tokenizer_training.train import train_tokenizer

    training = TrainingOptions(
        vocab_size=options.vocab_size,
        sample_bytes=options.sample_bytes,
        alpha=options.alpha,
        character_coverage=options.character_coverage,
    )
    with terminal_progress() as progress:
        trained = train_tokenizer(
            options.corpus, options.out, training, _recipe(options), replace=options.replace, progress=progress
        )
    table = _table("language", "documents", "text", "sampled", "of it", "of the sample")
    whole_bytes = sum(language.sampled_bytes for language in trained.languages.values())
    for name, language in trained.languages.items():
        table.add_row(
            name,
            f"{language.num_documents:,}",
            format_size(language.num_bytes),
            format_size(language.sampled_bytes),
            f"{language.sampled_bytes / language.num_bytes:.2f} times",
            f"{language.sampled_bytes / whole_bytes:.1%}",
        )
    _print(table, to_stderr=True)
    report = shlex.join([str(trained.path), "--corpus", *map(str, options.corpus)])
    sys.stderr.write(f"{trained.path}: {trained.vocab_size:,} pieces\nNext: gemma-orch tokenizer report {report}\n")
    return ExitCode.DONE


def _train_parser() -> VerbParser:
    parser = VerbParser("tokenizer train", "Train a SentencePiece model (BPE, byte fallback, Gemma's special ids) on a corpus.")
    _add_corpus(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the model file to write")
    parser.add_argument("--replace", action="store_true", help="replace the file when it is there")
    parser.add_argument(
        "--vocab-size", type=int, default=_TRAINING.vocab_size, metavar="N", help="pieces, at most 65536 (default: %(default)s)"
    )
    sample = parser.add_argument_group("sample", "what is trained on; memory is bounded by it, whatever the corpus")
    sample.add_argument(
        "--sample-bytes",
        type=parsed_by(parse_size_bytes),
        default=_TRAINING.sample_bytes,
        metavar="SIZE",
        help=f"text to train on (default: {format_size(_TRAINING.sample_bytes)})",
    )
    sample.add_argument(
        "--alpha",
        type=float,
        default=_TRAINING.alpha,
        metavar="A",
        help="a language's share is as its bytes to this power: 0 all alike, 1 as they come (default: %(default)s)",
    )
    sample.add_argument(
        "--character-coverage",
        type=float,
        default=_TRAINING.character_coverage,
        metavar="C",
        help="share of the characters that get a piece of their own; the rest is written as bytes (default: %(default)s)",
    )
    reading = parser.add_argument_group("reading")
    add_reading(reading)
    reading.add_argument(
        "--max-malformed",
        type=float,
        default=Recipe().max_malformed_share,
        metavar="SHARE",
        help="refuse a corpus in which more of the records have no usable text (default: %(default)s)",
    )
    cleaning = parser.add_argument_group("cleaning, as gemma-orch prepare does it")
    cleaning.add_argument("--no-nfc", action="store_true", help="do not bring text into Unicode's composed form (NFC)")
    cleaning.add_argument("--keep-control", action="store_true", help="keep control characters")
    return parser


def _report(argv: Sequence[str]) -> int:
    options = _report_parser().parse(argv)
    from worker.corpus.progress import terminal_progress
    from worker.tokenizer.tokenizer import load_tokenizer
    from worker.tokenizer_training.report import as_table, report_tokenizer

    tokenizer = load_tokenizer(options.file)
    max_bytes = None if options.all else options.max_bytes
    with terminal_progress() as progress:
        report = report_tokenizer(tokenizer, options.corpus, _recipe(options), max_bytes=max_bytes, progress=progress)
    looked_at = f"the beginning of each file, {format_size(max_bytes or 0)} a language (--all: everything)"
    sys.stderr.write(f"looked at {looked_at if report.is_sample else 'all text'}\n")
    if report.skipped:
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
        sys.stderr.write(f"passed over: {skipped}\n")
    if options.json:
        sys.stdout.write(report.to_json().decode())
    else:
        _print(as_table(report), to_stderr=False)
    for name, language in report.languages.items():
        for failure in language.failures:
            sys.stderr.write(f"{name}: {failure}\n")
    return ExitCode.DONE


def _report_parser() -> VerbParser:
    parser = VerbParser("tokenizer report", "Encode a corpus, decode it again, and count, per language.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a SentencePiece model")
    _add_corpus(parser)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--max-bytes",
        type=parsed_by(parse_size_bytes),
        default=parse_size_bytes("50MB"),
        metavar="SIZE",
        help="text to look at per language, the beginning of each file (default: 50MB)",
    )
    amount.add_argument("--all", action="store_true", help="look at all text")
    parser.add_argument("--json", action="store_true", help="print the report on stdout as JSON")
    add_reading(parser.add_argument_group("reading"))
    return parser


def _check(argv: Sequence[str]) -> int:
    parser = VerbParser("tokenizer check", "Say whether a SentencePiece model can be used, and what it does to text.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a SentencePiece model")
    parser.add_argument("--json", action="store_true", help="print what was found on stdout as JSON")
    options = parser.parse(argv)
    from worker.tokenizer_training.check import check_tokenizer

    check = check_tokenizer(options.file)
    sys.stdout.write(check.to_json().decode() if options.json else f"{check}\n")
    return ExitCode.DONE if check.is_usable else ExitCode.USER


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=Path, action="extend", nargs="+", required=True, metavar="DIR", help="folders of text, as for prepare"
    )


def _recipe(options: argparse.Namespace) -> Recipe:
    try:
        return Recipe(
            text_field=options.text_field,
            language_field=options.language_field,
            text_documents=options.text_documents,
            max_document_bytes=options.max_document_size,
            max_malformed_share=getattr(options, "max_malformed", 1.0),
            nfc=not getattr(options, "no_nfc", False),
            strip_control=not getattr(options, "keep_control", False),
        )
    except ValidationError as error:
        problems = [(str(problem["loc"][0]), problem["msg"]) for problem in error.errors()]
        raise UserError(
            "\n".join(f"{_OPTION_OF_FIELD.get(name, '--' + name.replace('_', '-'))}: {said}" for name, said in problems)
        ) from error


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print(table: Table, *, to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    Console(file=stream, width=None if stream.isatty() else _TABLE_WIDTH).print(table)
