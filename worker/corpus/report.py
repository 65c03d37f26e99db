"""Reports what a preparation left out, dropped and changed, per source with examples; and its summary as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from state.data_manifest import REPORT_NAME, DataManifest, SourceShare
from state.document import Document
from worker.corpus.units import Example


class SourceReport(Document):
    """The counts of one source: records, documents, and what was left out or changed."""

    corpus: int
    name: str
    num_records: int
    num_documents: int
    num_held_out: int
    skipped: dict[str, int]
    changed: dict[str, int]
    dropped: dict[str, int]
    examples: dict[str, tuple[Example, ...]]


class Report(Document):
    """`report.json` of a data folder."""

    schema_version: Literal[1] = 1
    sources: tuple[SourceReport, ...]


def make_report(manifest: DataManifest, examples: Mapping[int, Mapping[str, Sequence[Example]]]) -> Report:
    """Return the report of a data folder.

    Args:
        manifest: The folder's manifest.
        examples: By the source's number, then by reason.
    """
    shares: list[list[SourceShare]] = [[] for _ in manifest.sources]
    for language in manifest.languages.values():
        for share in language.sources:
            shares[share.source].append(share)
    return Report(
        sources=tuple(
            SourceReport(
                corpus=source.corpus,
                name=source.name,
                num_records=source.num_records,
                num_documents=sum(share.num_documents for share in shares[number]),
                num_held_out=sum(share.num_held_out for share in shares[number]),
                skipped=source.skipped,
                changed=add_up(share.changed for share in shares[number]),
                dropped=add_up(share.dropped for share in shares[number]),
                examples={reason: tuple(kept) for reason, kept in examples.get(number, {}).items()},
            )
            for number, source in enumerate(manifest.sources)
        )
    )


def summary(manifest: DataManifest, folder: Path) -> str:
    """Return a data folder's languages as a table for people, and the counts of left-out and changed records by reason."""
    rows = [("language", "documents", "tokens", "text bytes", "bytes/token", "held out", "dropped")]
    for name, data in sorted(manifest.languages.items()):
        rows.append(
            (
                name,
                f"{data.num_documents:,}",
                f"{data.num_tokens:,}",
                f"{data.num_bytes_text:,}",
                f"{data.num_bytes_text / data.num_tokens:.2f}",
                f"{data.validation.num_documents if data.validation else 0:,}",
                f"{sum(data.dropped.values()):,}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]) for row in rows]
    changed = add_up(share.changed for data in manifest.languages.values() for share in data.sources)
    dropped = add_up(share.dropped for data in manifest.languages.values() for share in data.sources)
    for verb, counts in (("skipped", manifest.skipped), ("dropped", dropped), ("changed", changed)):
        lines += [f"{verb}: {count:,} {reason}" for reason, count in counts.items()]
    if manifest.skipped or dropped:
        lines.append(f"{folder / REPORT_NAME} names them by source, with examples")
    return "\n".join(lines)


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums by reason, in the order of the reasons' names."""
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))
