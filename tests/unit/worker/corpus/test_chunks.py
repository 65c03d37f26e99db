import codecs
import gzip
import hashlib
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import Recipe
from state.errors import DataError
from tests.repository import ROOT
from worker.corpus.chunks import Chunk, ChunkReader
from worker.corpus.records import BadRecord, Reason, Record, records
from worker.corpus.sources import Kind, SourceFile, find_sources, kind_of

SMALL = Recipe(max_document_bytes=1024)
CORPUS = ROOT.parent / "shared" / "corpus"
REMEDY = "replace it or take it out of the corpus folder; the same command then resumes"


def source(path: Path, language: str | None = "hindi") -> SourceFile:
    found = kind_of(path.name)
    assert found is not None
    return SourceFile(0, path.name, path, language, found[1])


def written(path: Path, data: bytes) -> SourceFile:
    path.write_bytes(data)
    return source(path)


def chunks_of(file: SourceFile, recipe: Recipe, chunk_bytes: int = 64) -> list[Chunk]:
    return list(ChunkReader(file, recipe, chunk_bytes=chunk_bytes).chunks())


def records_of(file: SourceFile, recipe: Recipe, chunk_bytes: int = 64) -> list[Record | BadRecord]:
    return [record for chunk in chunks_of(file, recipe, chunk_bytes) for record in records(chunk, recipe)]


def zstd(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def table(path: Path, columns: dict[str, Any], **options: Any) -> SourceFile:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return source(path)


# Lines of all lengths around the limit of 1024 bytes, blank ones, and what begins blank.
LINE = st.one_of(
    st.sampled_from([b"", b" ", b"\r", b"\t \r", b"a", b"b\r", b'{"text": "c"}', " नमस्ते".encode(), b"\xff", b"\0"]),
    st.builds(
        lambda head, length: (head + b"x" * length)[:length],
        st.sampled_from([b"", b" " * 1030, b" " * 1020, b'{"text": "']),
        st.sampled_from([1, 60, 1000, 1022, 1023, 1024, 1025, 1026, 1027, 3000]),
    ),
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    lines=st.lists(LINE, max_size=20),
    ends_with_line_feed=st.booleans(),
    chunk_bytes=st.sampled_from([1, 2, 63, 500, 1023, 1024, 1025, 2050, 5000]),
    form=st.sampled_from(["a.jsonl", "a.txt"]),
    documents=st.sampled_from(["file", "paragraphs", "lines"]),
    piece_bytes=st.sampled_from([150, 1500, 10**6]),
)
def test_the_records_are_the_same_whatever_the_size_of_a_chunk_and_however_the_file_is_compressed(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    ends_with_line_feed: bool,
    chunk_bytes: int,
    form: str,
    documents: Literal["file", "paragraphs", "lines"],
    piece_bytes: int,
):
    folder = tmp_path_factory.getbasetemp()
    data = b"\n".join(lines) + b"\n" * ends_with_line_feed
    recipe = Recipe(max_document_bytes=1024, text_documents=documents)
    file = written(folder / form, data)
    expected = records_of(file, recipe, 10**6)
    assert records_of(file, recipe, chunk_bytes) == expected
    # Each member and each frame comes out of its decompressor as a piece of its own.
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)] or [b""]
    packed = written(folder / f"{form}.gz", b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces))
    assert records_of(packed, recipe, chunk_bytes) == expected
    packed = written(folder / f"{form}.zst", b"".join(zstd(piece, level=1) for piece in pieces))
    assert records_of(packed, recipe, chunk_bytes) == expected
    assert chunks_of(packed, recipe, chunk_bytes) == [
        replace(chunk, source=packed) for chunk in chunks_of(file, recipe, chunk_bytes)
    ]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(lines=st.lists(LINE, max_size=20), chunk_bytes=st.sampled_from([1, 100, 1024, 3000]))
def test_every_line_is_in_its_chunk_under_its_number(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk_bytes: int
):
    recipe = Recipe(max_document_bytes=1024, text_documents="lines")
    file = written(tmp_path_factory.getbasetemp() / "numbered.txt", b"".join(line + b"\n" for line in lines))
    for position, chunk in enumerate(chunks_of(file, recipe, chunk_bytes)):
        assert chunk.number == position
        assert isinstance(chunk.data, bytes)
        assert len(chunk.data) <= chunk_bytes + 1024 + 2
        for number, line in enumerate(chunk.data.split(b"\n")[:-1], chunk.first_record):
            assert line == lines[number - 1] or (len(line) > 1024 and lines[number - 1].startswith(line))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    texts=st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "नमस्ते", "x" * 1024, "x" * 1025, "x" * 5000])), max_size=30),
    chunk_bytes=st.sampled_from([1, 100, 2000, 10**6]),
    group=st.sampled_from([1, 3, 100]),
)
def test_rows_are_the_same_whatever_the_size_of_a_chunk(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], chunk_bytes: int, group: int
):
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    file = table(path, {"text": pyarrow.array(texts, pyarrow.string())}, row_group_size=group)
    found = records_of(file, SMALL, chunk_bytes)
    assert [record.number for record in found] == list(range(1, len(texts) + 1))
    for text, record in zip(texts, found, strict=True):
        if text is None:
            assert record[1:] == (Reason.NO_TEXT, "")
        elif not text:
            assert record[1:] == (Reason.EMPTY_TEXT, "")
        elif len(text) > 1024:
            assert record[1:] == (Reason.TOO_LONG, "x" * 80)
        else:
            assert record[1:] == (text, "hindi")


def test_a_chunk_can_be_sent_to_another_process_and_is_always_the_same(tmp_path: Path):
    file = written(tmp_path / "a.jsonl", b'{"text": "x"}\n' * 100)
    found = chunks_of(file, SMALL)
    assert [(chunk.number, chunk.first_record) for chunk in found[:3]] == [(0, 1), (1, 6), (2, 11)]
    assert pickle.loads(pickle.dumps(found)) == found == chunks_of(file, SMALL)
    assert b"".join(chunk.data for chunk in found if isinstance(chunk.data, bytes)) == file.path.read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.gz", "a.jsonl.zst", "a.parquet"])
def test_the_digest_is_that_of_the_file_as_it_lies_there(tmp_path: Path, name: str):
    data = b'{"text": "x"}\n' * 1000
    if name == "a.parquet":
        file = table(tmp_path / name, {"text": ["x"] * 1000})
    else:
        packed = {"a.jsonl": data, "a.txt.gz": gzip.compress(data), "a.jsonl.zst": zstd(data)}
        file = written(tmp_path / name, packed[name])
    reader = ChunkReader(file, Recipe(), chunk_bytes=100)
    read = [reader.bytes_read for _ in reader.chunks()]
    assert read == sorted(read)
    assert reader.bytes_read == reader.num_bytes == file.path.stat().st_size
    assert reader.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()


def test_an_empty_file_has_no_records_but_as_a_document_it_is_an_empty_one(tmp_path: Path):
    assert chunks_of(written(tmp_path / "a.jsonl", b""), SMALL) == []
    assert chunks_of(written(tmp_path / "a.txt", b""), Recipe(text_documents="lines")) == []
    assert chunks_of(written(tmp_path / "a.txt", b""), Recipe(text_documents="paragraphs")) == []
    assert records_of(written(tmp_path / "a.txt", b""), SMALL) == [BadRecord(1, Reason.EMPTY_TEXT, "")]
    assert records_of(written(tmp_path / "a.jsonl.gz", gzip.compress(b"")), SMALL) == []
    assert records_of(written(tmp_path / "a.jsonl.zst", zstd(b"")), SMALL) == []
    assert records_of(table(tmp_path / "a.parquet", {"text": pyarrow.array([], pyarrow.string())}), SMALL) == []


def test_a_byte_order_mark_of_utf8_is_taken_off(tmp_path: Path):
    file = written(
        tmp_path / "a.jsonl.gz", gzip.compress(codecs.BOM_UTF8[:2]) + gzip.compress(codecs.BOM_UTF8[2:] + b'{"text": "x"}')
    )
    assert records_of(file, SMALL) == [Record(1, "x", "hindi")]
    assert records_of(written(tmp_path / "a.txt", codecs.BOM_UTF8), SMALL) == [BadRecord(1, Reason.EMPTY_TEXT, "")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_another_encoding_that_says_so_is_an_error_with_its_remedy(tmp_path: Path, encoding: str, name: str):
    file = written(tmp_path / name, '\ufeff{"text": "नमस्ते"}\n'.encode(encoding))
    with pytest.raises(DataError, match=rf"{name} is UTF-16 or UTF-32, not UTF-8") as caught:
        chunks_of(file, SMALL)
    assert "iconv" in caught.value.remedy


def test_concatenated_gzip_members_and_zeros_after_them_are_read(tmp_path: Path):
    data = gzip.compress(b'{"text": "a"}\n{"te') + gzip.compress(b"") + gzip.compress(b'xt": "b"}\n') + bytes(600_000)
    assert records_of(written(tmp_path / "a.jsonl.gz", data), SMALL) == [Record(1, "a", "hindi"), Record(2, "b", "hindi")]


def streamed(data: bytes) -> bytes:
    writer = zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=True).compressobj()
    return writer.compress(data) + writer.flush()


NOISE = random.Random(0).randbytes(400_000).hex().encode()


@pytest.mark.parametrize(
    "pack",
    [
        zstd,
        streamed,
        lambda data: zstd(data, level=19, write_checksum=True),
        lambda data: zstd(
            data, compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=24, enable_ldm=True)
        ),
        lambda data: (
            zstd(data[:1000]) + b"\x53\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000) + zstd(data[1000:])
        ),
    ],
)
@pytest.mark.parametrize("data", [b"a", b"x" * 300, b"y" * 70_000, b"z" * 1_000_000, NOISE])
def test_every_kind_of_zstd_frame_is_read(tmp_path: Path, pack: Callable[[bytes], bytes], data: bytes):
    file = written(tmp_path / "a.txt.zst", pack(data))
    assert records_of(file, Recipe()) == [Record(1, data.decode(), "hindi")]


NUMBERED = b"".join(b'{"text": "%d"}\n' % number for number in range(20_000))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("share", [0.0, 0.00001, 0.0001, 0.5, 0.99999])
def test_a_file_that_is_cut_off_says_so_and_how_far_it_was_read(tmp_path: Path, name: str, share: float):
    packed = gzip.compress(NUMBERED) if name.endswith("gz") else streamed(NUMBERED)
    file = written(tmp_path / name, packed[: int(len(packed) * share)])
    read: list[Record | BadRecord] = []
    with pytest.raises(DataError, match=rf"{name} is cut off") as caught:
        read.extend(record for chunk in ChunkReader(file, SMALL, chunk_bytes=1000).chunks() for record in records(chunk, SMALL))
    assert caught.value.remedy == REMEDY
    assert [record[:2] for record in read] == [(number + 1, str(number)) for number in range(len(read))]
    if share == 0.99999:
        assert f"{20_000:,} lines of it were read" in caught.value.what
    if share == 0.5:
        assert "lines of it were read" in caught.value.what


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("place", [0, 3, 2_000, -5])
def test_a_file_whose_bytes_have_changed_says_so(tmp_path: Path, name: str, place: int):
    packed = bytearray(gzip.compress(NUMBERED) if name.endswith("gz") else streamed(NUMBERED))
    packed[place] ^= 0xFF
    file = written(tmp_path / name, bytes(packed))
    with pytest.raises(DataError, match=rf"{name} is ") as caught:
        chunks_of(file, SMALL)
    assert caught.value.remedy == REMEDY


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=rf"{name} (is no|cannot be read as Parquet)") as caught:
        chunks_of(written(tmp_path / name, b'{"text": "x"}\n' * 50), SMALL)
    assert caught.value.remedy == REMEDY


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_something_after_the_compressed_stream_is_an_error(tmp_path: Path, name: str):
    packed = gzip.compress(b"{}") if name.endswith("gz") else zstd(b"{}")
    with pytest.raises(DataError, match=r"is no gzip, or a damaged one|has something after its last zstd frame"):
        chunks_of(written(tmp_path / name, packed + b"more"), SMALL)


def test_a_zstd_block_of_an_impossible_size_is_not_waited_for(tmp_path: Path):
    packed = b"\x28\xb5\x2f\xfd\x00\x58" + (0x1FFFFF << 3 | 0b101).to_bytes(3, "little") + bytes(300_000)
    with pytest.raises(DataError, match="a block is larger than it can be"):
        chunks_of(written(tmp_path / "a.jsonl.zst", packed), SMALL)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_is_gone_or_a_folder_by_now_says_so(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=rf"{name} cannot be read") as caught:
        chunks_of(source(tmp_path / name), SMALL)
    assert caught.value.remedy == REMEDY
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        chunks_of(source(tmp_path / name), SMALL)


def test_a_missing_column_names_those_that_are_there(tmp_path: Path):
    file = table(tmp_path / "a.parquet", {"content": ["x"], "url": ["y"]})
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text'") as caught:
        chunks_of(file, SMALL)
    assert "content, url" in caught.value.expected
    assert "--text-field" in caught.value.remedy
    assert records_of(file, Recipe(text_field="content")) == [Record(1, "x", "hindi")]
    with pytest.raises(DataError, match="no column 'lang'"):
        chunks_of(file, Recipe(text_field="content", language_field="lang"))


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [{"a": 1}, {"a": 2}]])
def test_a_column_that_holds_no_text_says_what_it_holds(tmp_path: Path, values: list[Any]):
    with pytest.raises(DataError, match=r"the column 'text' of .*a\.parquet holds (int|list|struct).*, not text"):
        chunks_of(table(tmp_path / "a.parquet", {"text": values}), SMALL)


@pytest.mark.parametrize(
    "kind",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
)
def test_text_may_be_stored_in_every_way_that_parquet_has(tmp_path: Path, kind: Any):
    texts = pyarrow.array(["नमस्ते", None, "नमस्ते"], pyarrow.string()).cast(kind)
    file = table(tmp_path / "a.parquet", {"other": [1, 2, 3], "text": texts, "lang": ["hindi", "hindi", None]})
    assert records_of(file, Recipe(language_field="lang")) == [
        Record(1, "नमस्ते", "hindi"),
        BadRecord(2, Reason.NO_TEXT, ""),
        BadRecord(3, Reason.NO_LANGUAGE, "नमस्ते"),
    ]


def test_a_column_of_nothing_is_a_missing_text_in_each_row(tmp_path: Path):
    file = table(tmp_path / "a.parquet", {"text": pyarrow.nulls(2)})
    assert records_of(file, SMALL) == [BadRecord(1, Reason.NO_TEXT, ""), BadRecord(2, Reason.NO_TEXT, "")]


def test_a_parquet_file_that_is_damaged_says_how_far_it_was_read(tmp_path: Path):
    texts = [random.Random(number).randbytes(50).hex() for number in range(1000)]
    file = table(tmp_path / "a.parquet", {"text": texts}, row_group_size=100, use_dictionary=False)
    start = pyarrow.parquet.read_metadata(file.path).row_group(5).column(0).data_page_offset
    data = bytearray(file.path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    file.path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet, after 500 rows \(") as caught:
        chunks_of(file, SMALL)
    assert caught.value.remedy == REMEDY
    file.path.write_bytes(data[:-100])
    with pytest.raises(DataError, match="cannot be read as Parquet, after 0 rows"):
        chunks_of(file, SMALL)


def test_the_kind_and_not_the_name_decides_how_a_file_is_read(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"one\n")
    found = kind_of("a.txt")
    assert found is not None
    file = SourceFile(0, "a.jsonl", tmp_path / "a.jsonl", "hindi", found[1])
    assert isinstance(file.kind, Kind)
    assert records_of(file, SMALL) == [Record(1, "one", "hindi")]


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the real corpus is not here")
def test_the_real_corpus_is_read_whole():
    read: dict[str, tuple[int, int]] = {}
    for file in find_sources([CORPUS], Recipe()).files:
        texts = [record[1] for record in records_of(file, Recipe(), 100_000)]
        read[file.name] = len(texts), sum(len(text) for text in texts)
    told = {file["file"]: (file["docs"], file["chars"]) for file in json.loads((CORPUS / "stats.json").read_bytes())}
    assert read == told
