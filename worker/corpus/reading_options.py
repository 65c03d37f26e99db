"""Options of all verbs that read a corpus: which parts of a file are the text and what a document is."""

from __future__ import annotations

import argparse

from state.data_manifest import Recipe
from state.quantities import format_size, parse_size_bytes
from worker.cli import parsed_by

_DEFAULTS = Recipe()


def add_reading(group: argparse._ArgumentGroup) -> None:
    """Add the options that define the documents of a file."""
    group.add_argument(
        "--text-field",
        default=_DEFAULTS.text_field,
        metavar="NAME",
        help="field of JSONL, or column of Parquet, that holds the text (default: %(default)s)",
    )
    group.add_argument("--language-field", metavar="NAME", help="field that names the language (default: the folder does)")
    group.add_argument(
        "--text-documents",
        choices=("file", "paragraphs", "lines"),
        default=_DEFAULTS.text_documents,
        help="what one document of a plain text file is (default: %(default)s)",
    )
    group.add_argument(
        "--max-document-size",
        type=parsed_by(parse_size_bytes),
        default=_DEFAULTS.max_document_bytes,
        metavar="SIZE",
        help=f"leave out longer lines, rows and documents (default: {format_size(_DEFAULTS.max_document_bytes)})",
    )
