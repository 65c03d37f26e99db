"""The results of `data show`, as documents (the JSON contract) and as text for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from state.document import Document

_INDENT = " " * 8


class DocumentPiece(Document):
    """The part of a document that lies in a sequence."""

    corpus: int = Field(description="which of the corpus folders, from 0")
    source: str = Field(description="path within that folder")
    unit: Literal["line", "row", "document"]
    record: int = Field(description="number of that line, row or document of the source, from 1")
    first_token: int = Field(description="place in the sequence, from 0")
    num_tokens: int
    document_offset: int = Field(description="tokens of the document before this piece")
    text: str | None = Field(default=None, description="what the tokens say; with --decode")

    def place(self, *, several_corpora: bool) -> str:
        """Return the document's place in its source, in words."""
        corpus = f"corpus {self.corpus + 1}: " if several_corpora else ""
        return f"{corpus}{self.source}, {self.unit} {self.record:,}"


class SequenceRead(Document):
    """One sequence of a step."""

    number: int = Field(description="place in the batch, from 1")
    language: str
    sequence: int = Field(description="number within the language, from 0")
    epoch: int = Field(description="how often the language had been read through before, from 0")
    first_token: int = Field(description="place in the language's stream, from 0")
    num_tokens: int = Field(description="sequence_length and one more, the last target")
    documents: tuple[DocumentPiece, ...]


class StepRead(Document):
    """The sequences that a step reads."""

    schema_version: Literal[1] = 1
    run: str
    step: int
    total_steps: int
    sequence_length: int
    data_dir: str
    data_sha256: str
    sequences: tuple[SequenceRead, ...]


class LanguageHeld(Document):
    """The contents of a data folder in one language."""

    language: str
    num_documents: int
    num_tokens: int
    num_bytes_text: int
    validation_documents: int
    validation_tokens: int
    share: float | None = Field(default=None, description="of the sequences of the run's steps")
    epochs: float | None = Field(default=None, description="how often it is read by the run's last step")


class DataHeld(Document):
    """The contents of a data folder, and the steps of a run that read it."""

    data_dir: str
    data_sha256: str
    first_step: int | None = Field(default=None, description="first step that reads it")
    last_step: int | None = Field(default=None, description="last step that reads it")
    languages: tuple[LanguageHeld, ...]


class DataOverview(Document):
    """The data of a run, version by version, or one data folder."""

    schema_version: Literal[1] = 1
    run: str | None = None
    versions: tuple[DataHeld, ...]


def step_text(step: StepRead, *, width: int) -> str:
    """Return a step's sequences and documents as text for people."""
    counts = Counter(sequence.language for sequence in step.sequences)
    of = ", ".join(f"{language} {count}" for language, count in sorted(counts.items()))
    several = len({piece.corpus for sequence in step.sequences for piece in sequence.documents}) > 1
    lines = [
        f"step {step.step:,} of {step.total_steps:,} of run {step.run}",
        f"{len(step.sequences)} sequences of {step.sequence_length} tokens and the last target: {of}",
    ]
    for sequence in step.sequences:
        lines += [
            "",
            f"sequence {sequence.number}: {sequence.language}, epoch {sequence.epoch + 1}, "
            f"tokens {sequence.first_token:,} to {sequence.first_token + sequence.num_tokens - 1:,} of the language",
        ]
        for piece in sequence.documents:
            lines += _piece_lines(piece, several_corpora=several, width=width)
    return "\n".join(lines)


def _piece_lines(piece: DocumentPiece, *, several_corpora: bool, width: int) -> list[str]:
    last = piece.first_token + piece.num_tokens - 1
    begins = f", from its token {piece.document_offset:,} on" if piece.document_offset else ""
    lines = [f"  {piece.first_token:>6}-{last:<6} {piece.place(several_corpora=several_corpora)}{begins}"]
    for paragraph in (piece.text or "").split("\n") if piece.text is not None else []:
        lines += textwrap.wrap(
            paragraph.strip(), max(width, 40), initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
        ) or [""]
    return lines


def overview_text(overview: DataOverview) -> str:
    """Return the contents of the data as text for people."""
    parts = []
    for held in overview.versions:
        steps = ""
        if held.first_step is not None and held.last_step is not None:
            steps = f"steps {held.first_step:,} to {held.last_step:,} of run {overview.run} read "
        parts.append(f"{steps}{held.data_dir}, sha256 {held.data_sha256[:12]}\n{_languages_table(held.languages)}")
    return "\n\n".join(parts)


def _languages_table(languages: Sequence[LanguageHeld]) -> str:
    of_a_run = languages[0].share is not None
    rows = [("language", "documents", "tokens", "text bytes", "held out", *(("share", "epochs") if of_a_run else ()))]
    for held in languages:
        share, epochs = held.share or 0.0, held.epochs or 0.0
        rows.append(
            (
                held.language,
                f"{held.num_documents:,}",
                f"{held.num_tokens:,}",
                f"{held.num_bytes_text:,}",
                f"{held.validation_documents:,}",
                *((f"{share:.2%}", f"{epochs:.2f}") if of_a_run else ()),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)
