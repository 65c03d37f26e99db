from pathlib import Path

import numpy as np
import pytest

from state.errors import DataError
from worker.corpus.units import DOCUMENT, Example, Portion, read_documents, read_header, read_unit, write_unit


def test_a_unit_is_read_as_it_was_written(tmp_path: Path):
    portions = [Portion(num_records=3, skipped={"not JSON": 1}, examples={"not JSON": (Example(record=2, excerpt="{"),)})]
    documents = np.zeros(2, dtype=DOCUMENT)
    documents["num_tokens"] = [3, 1]
    documents["held_out"] = [True, False]
    tokens = np.array([5, 6, 7, 8], dtype="<u4")
    header = write_unit(tmp_path / "a.unit", portions, ["hindi"], documents, tokens)
    unit = read_unit(tmp_path / "a.unit")
    assert (unit.header, unit.tokens.tolist(), unit.tokens.dtype) == (header, [5, 6, 7, 8], np.dtype("<u4"))
    assert unit.documents.tolist() == documents.tolist() == read_documents(tmp_path / "a.unit").tolist()
    assert read_header(tmp_path / "a.unit") == header
    assert header.portions == tuple(portions)


def test_a_unit_may_be_without_documents(tmp_path: Path):
    write_unit(tmp_path / "a.unit", [], [], np.zeros(0, dtype=DOCUMENT), np.zeros(0, dtype="<u2"))
    assert len(read_unit(tmp_path / "a.unit").tokens) == 0


def test_a_file_that_is_no_unit_is_named(tmp_path: Path):
    (tmp_path / "a.unit").write_bytes(b"\x02\0\0\0\0\0\0\0no unit")
    with pytest.raises(DataError, match=r"a\.unit is not a valid UnitHeader"):
        read_header(tmp_path / "a.unit")
