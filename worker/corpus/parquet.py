"""Reads the rows of a Parquet file, at most two columns, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from state.data_manifest import Recipe
from state.errors import DataError
from worker.corpus.extras import required
from worker.corpus.sources import SourceFile

Row = tuple[bytes | None, bytes | None]
"""(text, language); None for a missing value."""

_BUFFER_BYTES = 1024 * 1024
_MAX_BATCH_ROWS = 1024


def row_batches(source: SourceFile, recipe: Recipe, *, batch_bytes: int) -> Iterator[tuple[list[Row], float]]:
    """Yield batches of rows, each with the share of the file that has been read (0 to 1).

    Args:
        source: The file.
        recipe: Names the columns.
        batch_bytes: About how much text a batch may have, estimated from the sizes of the row groups in the file.

    Raises:
        DataError: the file is not Parquet or is damaged, or the column is missing or holds no text.
    """
    pyarrow = required("pyarrow", str(source.path))
    parquet = required("pyarrow.parquet", str(source.path))
    columns = [recipe.text_field] + ([recipe.language_field] if recipe.language_field else [])
    num_rows = 0
    try:
        with parquet.ParquetFile(str(source.path), buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            for column in columns:
                _check_column(source, file.schema_arrow, column)
            for group in range(file.num_row_groups):
                rows_each = _batch_rows(file.metadata.row_group(group), recipe.text_field, batch_bytes)
                for batch in file.iter_batches(rows_each, row_groups=[group], columns=columns, use_threads=False):
                    num_rows += batch.num_rows
                    texts, *languages = (_values(pyarrow, batch.column(column)) for column in columns)
                    rows = list(zip(texts, languages[0] if languages else [None] * len(texts), strict=True))
                    yield rows, num_rows / file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{source.path} cannot be read as Parquet, after {num_rows:,} rows ({_first_line(error)})",
            remedy="replace it or take it out of the corpus folder; the same command then resumes",
        ) from error


def _check_column(source: SourceFile, schema: Any, column: str) -> None:
    index = schema.get_field_index(column)
    if index < 0:
        raise DataError(
            f"{source.path} has no column {column!r}, or has it more than once",
            expected=f"one of its columns: {', '.join(sorted(schema.names))}",
            remedy="name the column with --text-field or --language-field, or take the file out of the corpus folder",
        )
    kind = schema.field(index).type
    value = str(getattr(kind, "value_type", kind)) if str(kind).startswith("dictionary") else str(kind)
    if value not in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"):
        raise DataError(
            f"the column {column!r} of {source.path} holds {kind}, not text",
            remedy="name the column with --text-field or --language-field, or take the file out of the corpus folder",
        )


def _batch_rows(group: Any, column: str, batch_bytes: int) -> int:
    """Return how many rows of a group have about `batch_bytes` of text."""
    sizes = [group.column(index) for index in range(group.num_columns)]
    text_bytes = sum(size.total_uncompressed_size for size in sizes if size.path_in_schema == column)
    return max(1, min(_MAX_BATCH_ROWS, int(batch_bytes * group.num_rows / max(1, text_bytes))))


def _values(pyarrow: Any, column: Any) -> list[bytes | None]:
    """Return a column's values as bytes, because text in Parquet is not always UTF-8."""
    if isinstance(column, pyarrow.DictionaryArray):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
