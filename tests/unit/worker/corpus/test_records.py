from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import Recipe
from worker.corpus.chunks import Chunk
from worker.corpus.parquet import Row
from worker.corpus.records import BadRecord, Reason, Record, excerpt_of, records
from worker.corpus.sources import Form, Kind, SourceFile


def chunk(form: Form, data: bytes | tuple[Row, ...], language: str | None = "hindi", first_record: int = 1) -> Chunk:
    return Chunk(SourceFile(0, "a", Path("a"), language, Kind(form)), 0, first_record, data)


def only(found: list[Record | BadRecord]) -> Record | BadRecord:
    (record,) = found
    return record


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "नमस्ते"}'.encode(), "नमस्ते"),
        (b'{"text": " a ", "url": "b"}\r', " a "),
        (b'{"text": "\\ud83d\\ude00"}', "😀"),
        (b'{"text": "\xff"}', Reason.NOT_UTF8),
        ('{"text": "é"}'.encode("latin-1"), Reason.NOT_UTF8),
        ('{"text": "नमस्ते"}'.encode("utf-16-le"), Reason.NOT_JSON),
        (b'{"text": "\\ud800"}', Reason.NOT_UTF8),
        (b'{"text": "cut of', Reason.NOT_JSON),
        (b"[" * 100_000, Reason.NOT_JSON),
        (b'{"text": ' + b"1" * 10_000 + b"}", Reason.NOT_JSON),
        (b'["text"]', Reason.NOT_AN_OBJECT),
        (b'{"body": "a"}', Reason.NO_TEXT),
        (b'{"text": null}', Reason.TEXT_NOT_A_STRING),
        (b'{"text": ["a"]}', Reason.TEXT_NOT_A_STRING),
        (b'{"text": " \\n"}', Reason.EMPTY_TEXT),
        (b'{"text": ""}', Reason.EMPTY_TEXT),
    ],
)
def test_a_line_is_a_text_or_a_reason(line: bytes, expected: str | Reason):
    record = only(list(records(chunk(Form.JSONL, line), Recipe())))
    assert record[1] == expected
    assert isinstance(record, BadRecord) == isinstance(expected, Reason)


def test_bad_lines_keep_their_numbers_and_the_rest_is_read():
    data = b'{"text": "one"}\n\n  \nnot json\n{"text": "two"}\r\n{"text": ""}\n{"text": "three"}'
    assert list(records(chunk(Form.JSONL, data, first_record=10), Recipe())) == [
        Record(10, "one", "hindi"),
        BadRecord(13, Reason.NOT_JSON, "not json"),
        Record(14, "two", "hindi"),
        BadRecord(15, Reason.EMPTY_TEXT, '{"text": ""}'),
        Record(16, "three", "hindi"),
    ]


def test_a_line_as_long_as_it_may_be_is_read_and_a_longer_one_is_not():
    recipe = Recipe(max_document_bytes=1024)
    line = b'{"text": "' + b"x" * 1012 + b'"}'
    assert len(line) == 1024
    assert isinstance(only(list(records(chunk(Form.JSONL, line), recipe))), Record)
    assert only(list(records(chunk(Form.JSONL, line + b" "), recipe)))[:2] == (1, Reason.TOO_LONG)


def test_another_field_may_hold_the_text():
    found = records(chunk(Form.JSONL, b'{"content": "a", "text": 1}'), Recipe(text_field="content"))
    assert only(list(found)) == Record(1, "a", "hindi")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"konkani"', "konkani"),
        ('"कोंकणी"'.encode(), "कोंकणी"),
        (b"null", Reason.NO_LANGUAGE),
        (b'""', Reason.LANGUAGE_NAME),
        (b'".hidden"', Reason.LANGUAGE_NAME),
        (b'"a/b"', Reason.LANGUAGE_NAME),
        (b'"\\ud800"', Reason.LANGUAGE_NAME),
        (b'["hindi"]', Reason.LANGUAGE_NAME),
    ],
)
def test_a_line_may_name_its_language(value: bytes, expected: str | Reason):
    line = b'{"text": "a", "lang": ' + value + b"}"
    record = only(list(records(chunk(Form.JSONL, line, language=None), Recipe(language_field="lang"))))
    assert expected in (record[1], record[2])


def test_a_line_without_a_language_field_is_left_out():
    found = records(chunk(Form.JSONL, b'{"text": "a"}', language=None), Recipe(language_field="lang"))
    assert only(list(found)) == BadRecord(1, Reason.NO_LANGUAGE, '{"text": "a"}')


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((b"a", b"hindi"), Record(7, "a", "hindi")),
        ((None, b"hindi"), BadRecord(7, Reason.NO_TEXT, "")),
        ((b"a\xff", b"hindi"), BadRecord(7, Reason.NOT_UTF8, "a�")),
        ((b"  ", b"hindi"), BadRecord(7, Reason.EMPTY_TEXT, "")),
        ((b"a", None), BadRecord(7, Reason.NO_LANGUAGE, "a")),
        ((b"a", b"\xff"), BadRecord(7, Reason.LANGUAGE_NAME, "a")),
        ((b"x" * 1025, b"hindi"), BadRecord(7, Reason.TOO_LONG, "x" * 80)),
    ],
)
def test_a_row_is_a_text_or_a_reason(row: Row, expected: Record | BadRecord):
    recipe = Recipe(language_field="lang", max_document_bytes=1024)
    assert only(list(records(chunk(Form.PARQUET, (row,), language=None, first_record=7), recipe))) == expected


TEXT = b" \none\nmore\n\t\r\n\n\xff\xfe\n \ntwo \r\nmore\r\n\r\n\r\nthree"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [BadRecord(1, Reason.NOT_UTF8, "one more")]),
        (
            "paragraphs",
            [
                Record(2, "one\nmore", "hindi"),
                BadRecord(6, Reason.NOT_UTF8, "��"),
                Record(8, "two \nmore", "hindi"),
                Record(12, "three", "hindi"),
            ],
        ),
        (
            "lines",
            [
                Record(2, "one", "hindi"),
                Record(3, "more", "hindi"),
                BadRecord(6, Reason.NOT_UTF8, "��"),
                Record(8, "two ", "hindi"),
                Record(9, "more", "hindi"),
                Record(12, "three", "hindi"),
            ],
        ),
    ],
)
def test_plain_text_is_cut_into_documents_named_by_their_first_line(
    documents: Literal["file", "paragraphs", "lines"], expected: list[Record | BadRecord]
):
    found = list(records(chunk(Form.TEXT, TEXT), Recipe(text_documents=documents)))
    if documents == "file":
        assert found[0][:2] == expected[0][:2]
    else:
        assert found == expected


def test_a_text_file_is_one_document_with_line_feeds_only():
    assert list(records(chunk(Form.TEXT, "एक\r\n\r\nदोन\r\n".encode()), Recipe())) == [Record(1, "एक\n\nदोन", "hindi")]
    assert list(records(chunk(Form.TEXT, b" \n\n"), Recipe())) == [BadRecord(1, Reason.EMPTY_TEXT, "")]


@pytest.mark.parametrize("documents", ["file", "paragraphs", "lines"])
def test_utf16_without_a_mark_is_not_taken_for_text(documents: Literal["file", "paragraphs", "lines"]):
    data = "नमस्ते सगळ्यांक\nदुसरी वळ".encode("utf-16-le")
    found = list(records(chunk(Form.TEXT, data), Recipe(text_documents=documents)))
    assert {record[1] for record in found} <= {Reason.NOT_TEXT, Reason.NOT_UTF8}


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", " b", "नमस्ते", "c "]), min_size=1, max_size=3), min_size=1, max_size=5))
def test_paragraphs_come_back_as_they_were_with_their_lines(paragraphs: list[list[str]]):
    data = "\n\n".join("\n".join(lines) for lines in paragraphs).encode()
    found = list(records(chunk(Form.TEXT, data), Recipe(text_documents="paragraphs")))
    assert [record[1] for record in found] == ["\n".join(lines) for lines in paragraphs]
    assert [record.number for record in found] == [
        1 + sum(len(lines) + 1 for lines in paragraphs[:index]) for index in range(len(paragraphs))
    ]


def test_an_excerpt_is_one_short_line_that_can_be_printed():
    assert excerpt_of("नमस्ते\n\x1b[31m\0".encode() + b"\xff") == "नमस्ते  [31m �"
    assert excerpt_of("😀".encode() * 1000) == "😀" * 80
    assert excerpt_of("न".encode() * 1000) == "न" * 80
    assert excerpt_of(b"") == ""
