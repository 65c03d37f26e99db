from __future__ import annotations

import hashlib
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import DataError
from state.manifest import TensorEntry
from state.tensor_files import tensor_entries
from tests.factories import safetensors

MATRIX = bytes(range(24))  # U8, 6 rows of 4


def write(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"rank-{number}.safetensors" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def raw(header: Any, data: bytes = b"") -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_each_tensor_has_an_entry_in_name_order(tmp_path: Path) -> None:
    paths = write(tmp_path, safetensors({"b": ("U8", [6, 4], MATRIX), "a": ("F32", [], b"abcd")}))
    assert tensor_entries(paths) == (
        TensorEntry(name="a", dtype="F32", shape=(), sha256=hashlib.sha256(b"abcd").hexdigest()),
        TensorEntry(name="b", dtype="U8", shape=(6, 4), sha256=hashlib.sha256(MATRIX).hexdigest()),
    )


@pytest.mark.parametrize("name", ["metadata", "sharding", "entries", "model_config", "नाम", ""])
def test_a_tensor_may_have_any_name(tmp_path: Path, name: str) -> None:
    (entry,) = tensor_entries(write(tmp_path, safetensors({name: ("U8", [6, 4], MATRIX)}, {name: [0, 0]})))
    assert (entry.name, entry.shape) == (name, (6, 4))


@pytest.mark.parametrize("rows", [[6], [2, 4], [1, 2, 3], [0, 6, 0], [3, 0, 3]])
def test_entries_do_not_depend_on_how_the_files_are_cut(tmp_path: Path, rows: list[int]) -> None:
    whole = tensor_entries(write(tmp_path, safetensors({"m": ("U8", [6, 4], MATRIX)})))
    pieces, begin = [], 0
    for count in rows:
        part = MATRIX[4 * begin : 4 * (begin + count)]
        pieces.append(safetensors({"m": ("U8", [count, 4], part)}, {"m": [begin, 0]}))
        begin += count
    assert tensor_entries(write(tmp_path, *reversed(pieces))) == whole


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(0, 255)), min_size=1),
    st.lists(st.integers(0, 7), max_size=2),
)
def test_any_state_cut_into_any_files_has_the_same_entries(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, int, int]], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    contents = {name: bytes((first + i) % 256 for i in range(rows * width)) for name, (rows, width, first) in shapes.items()}
    whole = {name: ("U8", [rows, width], contents[name]) for name, (rows, width, _) in shapes.items()}
    bounds = [0, *sorted(cuts), 7]
    parts = []
    for begin, end in pairwise(bounds):
        tensors, offsets = {}, {}
        for name, (rows, width, _) in shapes.items():
            first, last = min(begin, rows), min(end, rows)
            tensors[name] = ("U8", [last - first, width], contents[name][first * width : last * width])
            offsets[name] = [first, 0]
        parts.append(safetensors(tensors, offsets))
    assert tensor_entries(write(folder, *parts)) == tensor_entries(write(folder, safetensors(whole)))


def test_a_large_tensor_is_read_in_parts(tmp_path: Path) -> None:
    large = bytes(9 * 1024 * 1024 + 1)
    (entry,) = tensor_entries(write(tmp_path, safetensors({"m": ("U8", [len(large)], large)})))
    assert entry.sha256 == hashlib.sha256(large).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 40,
        raw(b"{"),
        raw(b"\xff\xfe"),
        raw([]),
        raw({"m": 1}),
        raw({"m": {}}),
        raw({"m": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x"),
        raw({"m": {"dtype": 8, "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        raw({"m": {"dtype": "U8", "shape": "one", "data_offsets": [0, 1]}}, b"x"),
        raw({"__metadata__": [], "m": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        raw({"__metadata__": {"DCP_SHARDING_INFO": "{"}}),
        raw({"__metadata__": {"DCP_SHARDING_INFO": '{"m": {}}'}}),
        struct.pack("<Q", 1000) + b"{}",
    ],
)
def test_what_is_no_safetensors_file_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"rank-0\.safetensors is not a safetensors file"):
        tensor_entries(write(tmp_path, content))


@pytest.mark.parametrize("offsets", [[0, 9], [5, 0]])
def test_data_that_ends_early_is_a_data_error(tmp_path: Path, offsets: list[int]) -> None:
    content = raw({"m": {"dtype": "U8", "shape": [9], "data_offsets": offsets}}, b"1234")
    with pytest.raises(DataError, match=r"ends .* bytes early"):
        tensor_entries(write(tmp_path, content))


def piece(begin: int, rows: int, dtype: str = "U8", width: int = 4) -> bytes:
    return safetensors({"m": (dtype, [rows, width], bytes(rows * width))}, {"m": [begin, 0]})


@pytest.mark.parametrize(
    "pieces",
    [
        (piece(1, 5),),
        (piece(0, 2), piece(3, 3)),
        (piece(0, 3), piece(2, 4)),
        (piece(0, 6), piece(0, 6)),
        (piece(0, 2), piece(2, 4, dtype="I8")),
        (piece(0, 2), piece(2, 4, width=5)),
        (safetensors({"m": ("U8", [2, 2], b"abcd")}, {"m": [0, 2]}),),
    ],
)
def test_pieces_that_do_not_make_a_whole_are_a_data_error(tmp_path: Path, pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(DataError, match="the pieces of tensor m do not fit together"):
        tensor_entries(write(tmp_path, *pieces))


def test_a_single_number_that_two_files_hold_is_a_data_error(tmp_path: Path) -> None:
    number = safetensors({"n": ("F32", [], b"abcd")})
    with pytest.raises(DataError, match="scalar n is in 2 files"):
        tensor_entries(write(tmp_path, number, number))


def test_no_files_hold_no_tensors() -> None:
    assert tensor_entries([]) == ()
