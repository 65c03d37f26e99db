import hashlib
import os
from pathlib import Path

import pytest

from state.errors import DataError, UserError
from worker.corpus.reader import BadLine, DocumentReader, SourceFile, find_sources, text_of


def source(path: Path) -> SourceFile:
    return SourceFile(corpus=0, name=path.name, path=path, language="hindi")


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "x"}\n')
    return root


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "नमस्ते"}'.encode(), "नमस्ते"),
        (b'{"text": " a ", "url": "b"}\r\n', " a "),
        (b'{"text": "\xff"}', BadLine.NOT_UTF8),
        (b'{"text": "\\ud800"}', BadLine.NOT_UTF8),
        (b'{"text": "cut of', BadLine.NOT_JSON),
        (b"[" * 100_000, BadLine.NOT_JSON),
        (b'{"text": ' + b"1" * 10_000 + b"}", BadLine.NOT_JSON),
        (b'["text"]', BadLine.NOT_AN_OBJECT),
        (b'{"body": "a"}', BadLine.NO_TEXT),
        (b'{"text": null}', BadLine.TEXT_NOT_A_STRING),
        (b'{"text": ["a"]}', BadLine.TEXT_NOT_A_STRING),
        (b'{"text": " \\n"}', BadLine.EMPTY_TEXT),
    ],
)
def test_a_line_is_a_text_or_a_reason(line: bytes, expected: str | BadLine):
    found = text_of(line)
    assert found == expected
    assert isinstance(found, BadLine) == isinstance(expected, BadLine)


def test_bad_lines_are_counted_with_their_places_and_the_rest_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n  \nnot json\n{"text": "two"}\n{"text": ""}\n{"text": "three"}')
    reader = DocumentReader(source(path))
    assert list(reader.texts()) == ["one", "two", "three"]
    summary = reader.summary()
    assert summary.num_lines == 5
    assert summary.num_documents == 3
    assert summary.skipped == {'"text" is empty': 1, "not JSON": 1}
    assert [(place.line, place.reason) for place in reader.first_skipped] == [(4, "not JSON"), (6, '"text" is empty')]
    assert reader.first_skipped[0].file == str(path)
    assert summary.num_bytes == path.stat().st_size
    assert summary.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("length", [39, 40, 41, 79, 80, 81, 500])
def test_a_line_too_long_is_skipped_without_being_held(tmp_path: Path, length: int):
    path = tmp_path / "a.jsonl"
    long_line = b'{"text": "' + b"x" * (length - 12) + b'"}'
    assert len(long_line) == length
    path.write_bytes(b'{"text": "one"}\n' + long_line + b'\n{"text": "two"}\n' + long_line)
    reader = DocumentReader(source(path), max_line_bytes=40)
    texts = list(reader.texts())
    summary = reader.summary()
    assert [text for text in texts if len(text) < 10] == ["one", "two"]
    assert summary.num_lines == 4
    assert summary.num_documents + summary.skipped.get("too long for a document", 0) == 4
    assert len(texts) == (4 if length < 40 else 2)
    assert summary.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_first_places_are_remembered_but_all_are_counted(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 1000)
    reader = DocumentReader(source(path))
    assert list(reader.texts()) == []
    assert reader.summary().skipped == {"not JSON": 1000}
    assert len(reader.first_skipped) == 20


def test_an_empty_file_has_no_documents(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    reader = DocumentReader(source(tmp_path / "a.jsonl"))
    assert list(reader.texts()) == []
    assert reader.summary().num_lines == 0


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "a.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read"):
        list(DocumentReader(source(tmp_path / "a.jsonl")).texts())


def test_the_first_folder_names_the_language_and_a_file_at_the_top_names_its_own(tmp_path: Path):
    root = fill(tmp_path, "hindi/b.jsonl", "hindi/a/z.jsonl", "hindi/c.JSONL", "konkani.jsonl", "कोंकणी/एक फायल.jsonl")
    found = find_sources([root])
    assert {language: [file.name for file in files] for language, files in found.by_language.items()} == {
        "hindi": ["hindi/a/z.jsonl", "hindi/b.jsonl", "hindi/c.JSONL"],
        "konkani": ["konkani.jsonl"],
        "कोंकणी": ["कोंकणी/एक फायल.jsonl"],
    }
    assert found.ignored == ()


def test_files_of_other_kinds_are_named_as_ignored_and_hidden_ones_passed_over(tmp_path: Path):
    root = fill(tmp_path, "hindi/a.jsonl", "hindi/b.jsonl.gz", "README.md", ".git/x.jsonl", "hindi/.c.jsonl")
    assert find_sources([root]).ignored == ("README.md", "hindi/b.jsonl.gz")


def test_several_corpora_are_read_in_the_order_given_and_may_share_file_names(tmp_path: Path):
    one, two = fill(tmp_path / "one", "hindi/a.jsonl"), fill(tmp_path / "two", "hindi/a.jsonl", "english/b.jsonl")
    found = find_sources([two, one])
    assert [(file.corpus, file.path) for file in found.by_language["hindi"]] == [
        (0, two / "hindi/a.jsonl"),
        (1, one / "hindi/a.jsonl"),
    ]
    assert list(found.by_language) == ["english", "hindi"]


def test_a_link_to_a_folder_above_is_ignored_and_other_links_are_followed(tmp_path: Path):
    root = fill(tmp_path / "corpus", "hindi/a.jsonl")
    fill(tmp_path / "elsewhere", "b.jsonl")
    (root / "hindi" / "loop").symlink_to(root)
    (root / "konkani").symlink_to(tmp_path / "elsewhere")
    found = find_sources([root])
    assert list(found.by_language) == ["hindi", "konkani"]
    assert found.ignored == ("hindi/loop (a link to a folder above it)",)


def test_a_missing_corpus_folder_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="gone does not exist") as caught:
        find_sources([tmp_path / "gone"])
    assert "a folder per language" in caught.value.expected


def test_a_file_in_place_of_a_corpus_folder_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="is not a folder"):
        find_sources([fill(tmp_path, "a.jsonl") / "a.jsonl"])


def test_a_corpus_folder_without_jsonl_says_so(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no \.jsonl file"):
        find_sources([fill(tmp_path, "hindi/a.txt")])


def test_no_corpus_at_all_says_so():
    with pytest.raises(UserError, match="no corpus folder"):
        find_sources([])


def test_a_language_with_an_impossible_name_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="cannot name a language"):
        find_sources([fill(tmp_path, "data.json/a.jsonl")])


def test_a_file_name_that_is_not_utf8_says_so(tmp_path: Path):
    (tmp_path / "hindi").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"hindi", b"\xff.jsonl"), "wb"):
        pass
    with pytest.raises(UserError, match="is not UTF-8"):
        find_sources([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_says_so(tmp_path: Path):
    root = fill(tmp_path, "hindi/a.jsonl")
    (root / "hindi").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be listed"):
            find_sources([root])
    finally:
        (root / "hindi").chmod(0o755)
