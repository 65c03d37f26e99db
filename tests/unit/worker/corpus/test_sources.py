import os
from pathlib import Path

import pytest

from state.data_manifest import Recipe
from state.errors import UserError
from worker.corpus.sources import Compression, Form, Kind, SourceFile, find_sources, kind_of, not_read


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "x"}\n')
    return root


def by_language(files: tuple[SourceFile, ...]) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for file in files:
        found.setdefault(file.language, []).append(file.name)
    return found


@pytest.mark.parametrize(
    ("name", "form", "compression"),
    [
        ("a.jsonl", Form.JSONL, Compression.NONE),
        ("a.ndjson", Form.JSONL, Compression.NONE),
        ("a.JSONL.GZ", Form.JSONL, Compression.GZIP),
        ("a.ndjson.zst", Form.JSONL, Compression.ZSTD),
        ("a.txt", Form.TEXT, Compression.NONE),
        ("a.b.Txt.gz", Form.TEXT, Compression.GZIP),
        ("a.txt.zst", Form.TEXT, Compression.ZSTD),
        ("a.Parquet", Form.PARQUET, Compression.NONE),
    ],
)
def test_the_suffix_tells_the_format(name: str, form: Form, compression: Compression):
    found = kind_of(name)
    assert found is not None
    suffix, kind = found
    assert kind == Kind(form, compression)
    assert name.endswith(suffix)


@pytest.mark.parametrize("name", ["a.json", "a.gz", "jsonl", "a.jsonl.bz2", "a.parquet.gz", "README.md"])
def test_other_suffixes_are_no_text(name: str):
    assert kind_of(name) is None


def test_the_first_folder_names_the_language_and_a_file_at_the_top_names_its_own(tmp_path: Path):
    root = fill(
        tmp_path, "hindi/b.jsonl", "hindi/a/z.txt", "hindi/c.JSONL", "konkani.jsonl.GZ", "कोंकणी/एक फायल.jsonl", "एक बोली.txt"
    )
    found = find_sources([root], Recipe())
    assert by_language(found.files) == {
        "hindi": ["hindi/a/z.txt", "hindi/b.jsonl", "hindi/c.JSONL"],
        "konkani": ["konkani.jsonl.GZ"],
        "एक बोली": ["एक बोली.txt"],
        "कोंकणी": ["कोंकणी/एक फायल.jsonl"],
    }
    assert found.ignored == ()


def test_with_a_language_field_records_name_their_language_but_plain_text_cannot(tmp_path: Path):
    root = fill(tmp_path, "data.json/a.jsonl", "all.parquet", "mixed/b.jsonl.zst", "hindi/c.txt")
    found = find_sources([root], Recipe(language_field="lang"))
    assert by_language(found.files) == {
        None: ["all.parquet", "data.json/a.jsonl", "mixed/b.jsonl.zst"],
        "hindi": ["hindi/c.txt"],
    }


def test_files_of_other_kinds_are_named_as_ignored_and_hidden_ones_passed_over(tmp_path: Path):
    root = fill(tmp_path, "hindi/a.jsonl", "hindi/b.jsonl.bz2", "README.md", ".git/x.jsonl", "hindi/.c.jsonl")
    assert find_sources([root], Recipe()).ignored == ("README.md", "hindi/b.jsonl.bz2")


def test_several_corpora_are_read_in_the_order_given_and_may_share_file_names(tmp_path: Path):
    one, two = fill(tmp_path / "one", "hindi/a.jsonl"), fill(tmp_path / "two", "hindi/a.jsonl", "english/b.jsonl")
    found = find_sources([two, one], Recipe())
    assert [(file.language, file.corpus, file.path) for file in found.files] == [
        ("english", 0, two / "english/b.jsonl"),
        ("hindi", 0, two / "hindi/a.jsonl"),
        ("hindi", 1, one / "hindi/a.jsonl"),
    ]


def test_a_folder_given_twice_says_so_under_both_names(tmp_path: Path):
    root = fill(tmp_path / "corpus", "hindi/a.jsonl")
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(UserError, match=r"corpus and .*link are the same"):
        find_sources([root, tmp_path / "link"], Recipe())


@pytest.mark.parametrize("inner_first", [False, True])
def test_a_folder_inside_another_says_so_under_both_names(tmp_path: Path, inner_first: bool):
    root = fill(tmp_path / "corpus", "hindi/a.jsonl")
    corpora = [root / "hindi", root] if inner_first else [root, root / "hindi"]
    with pytest.raises(UserError, match=r"corpus/hindi lies inside the corpus folder .*corpus"):
        find_sources(corpora, Recipe())


def test_a_link_to_a_folder_above_is_ignored_and_other_links_are_followed(tmp_path: Path):
    root = fill(tmp_path / "corpus", "hindi/a.jsonl")
    fill(tmp_path / "elsewhere", "b.jsonl")
    (root / "hindi" / "loop").symlink_to(root)
    (root / "konkani").symlink_to(tmp_path / "elsewhere")
    found = find_sources([root], Recipe())
    assert by_language(found.files) == {"hindi": ["hindi/a.jsonl"], "konkani": ["konkani/b.jsonl"]}
    assert found.ignored == ("hindi/loop (a link to a folder above it)",)


def test_links_that_lead_back_to_themselves_are_ignored(tmp_path: Path):
    root = fill(tmp_path, "hindi/a.jsonl")
    (root / "hindi" / "self.jsonl").symlink_to("self.jsonl")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert find_sources([root], Recipe()).ignored == (
        "hindi/self.jsonl (a link that leads back to itself)",
        "one (a link that leads back to itself)",
        "two (a link that leads back to itself)",
    )


def test_a_pipe_is_ignored_as_reading_it_would_never_end(tmp_path: Path):
    os.mkfifo(fill(tmp_path, "hindi/a.jsonl") / "hindi" / "b.jsonl")
    assert find_sources([tmp_path], Recipe()).ignored == ("hindi/b.jsonl (not a regular file)",)


@pytest.mark.parametrize("name", ["hindi/b.jsonl", "konkani"])
def test_a_link_to_what_is_gone_says_so_as_it_may_have_been_a_whole_language(tmp_path: Path, name: str):
    root = fill(tmp_path, "hindi/a.jsonl")
    (root / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"{name} cannot be read \(No such file"):
        find_sources([root], Recipe())


def test_a_text_file_too_large_for_one_document_names_the_options_that_cut_it(tmp_path: Path):
    (tmp_path / "hindi.txt").write_bytes(b"x" * 2001)
    with pytest.raises(UserError, match=r"hindi\.txt has 2,001 bytes") as caught:
        find_sources([tmp_path], Recipe(max_document_bytes=2000))
    assert "--text-documents paragraphs" in caught.value.remedy
    assert "--text-documents lines" in caught.value.remedy
    assert find_sources([tmp_path], Recipe(max_document_bytes=2001)).files
    assert find_sources([tmp_path], Recipe(max_document_bytes=2000, text_documents="lines")).files
    (tmp_path / "hindi.txt").rename(tmp_path / "hindi.jsonl")
    assert find_sources([tmp_path], Recipe(max_document_bytes=2000)).files


def test_a_missing_corpus_folder_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="gone does not exist") as caught:
        find_sources([tmp_path / "gone"], Recipe())
    assert "a folder per language" in caught.value.expected


def test_a_file_in_place_of_a_corpus_folder_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="is not a folder"):
        find_sources([fill(tmp_path, "a.jsonl") / "a.jsonl"], Recipe())


def test_a_corpus_folder_without_text_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="has no file in it that can be read"):
        find_sources([fill(tmp_path, "hindi/a.md")], Recipe())


def test_no_corpus_at_all_says_so():
    with pytest.raises(UserError, match="no corpus folder"):
        find_sources([], Recipe())


@pytest.mark.parametrize("name", ["\n/a.jsonl", "न" * 40 + "/a.jsonl", "a\\b.jsonl"])
def test_a_language_with_an_impossible_name_says_so(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="cannot name a language"):
        find_sources([fill(tmp_path, name)], Recipe())


def test_a_file_name_that_is_not_utf8_says_so(tmp_path: Path):
    (tmp_path / "hindi").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"hindi", b"\xff.jsonl"), "wb"):
        pass
    with pytest.raises(UserError, match="is not UTF-8"):
        find_sources([tmp_path], Recipe())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_says_so(tmp_path: Path):
    root = fill(tmp_path, "hindi/a.jsonl")
    (root / "hindi").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be listed"):
            find_sources([root], Recipe())
    finally:
        (root / "hindi").chmod(0o755)


def test_of_many_files_that_are_not_read_only_the_first_are_named():
    assert not_read(["a.png"]) == "not read: a.png"
    assert not_read([f"{number}.png" for number in range(15_012)]).endswith(", 9.png and 15,002 more")
