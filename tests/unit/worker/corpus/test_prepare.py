import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from state import crash_points
from state.data_manifest import DataManifest, Recipe, TokenStream
from state.errors import DataError, TemporaryError, UserError
from state.files import sha256_of_file
from tests.corpora import ALL, MODEL, Listener, encoded, small_corpus, texts, tokens_of, tree, write_lines
from tests.repository import ROOT
from worker.corpus.cleaning import Rule
from worker.corpus.prepare import prepare
from worker.corpus.records import Reason
from worker.corpus.report import Report, summary
from worker.corpus.shipped import sample_corpus_dir
from worker.corpus.staging import staging_beside
from worker.data.batches import read_data_manifest
from worker.tokenizer.tokenizer import load_tokenizer

SHARED = Path(os.environ.get("GEMMA_ORCH_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return small_corpus(tmp_path / "corpus")


def documents_of(folder: Path, manifest: DataManifest, stream: TokenStream | None) -> list[str]:
    """Return a stream's texts."""
    ids, found = tokens_of(folder, manifest, stream), []
    while ids:
        end = ids.index(manifest.eos_id)
        found.append(load_tokenizer(MODEL).processor.decode(ids[1:end]))
        ids = ids[end + 1 :]
    return found


def test_documents_become_tokens_in_file_order_between_bos_and_eos(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    manifest = prepare([corpus], MODEL, out, ALL)
    hindi = manifest.languages["hindi"]
    assert tokens_of(out, manifest, hindi) == encoded("पहला", "नमस्ते दुनिया", "दूसरा")
    assert (hindi.num_documents, hindi.num_bytes_text) == (3, len("पहलानमस्ते दुनियादूसरा".encode()))
    assert [source.name for source in manifest.sources] == ["english/x.jsonl", "hindi/a.jsonl", "hindi/b.jsonl"]
    assert [(share.source, share.num_documents) for share in hindi.sources] == [(1, 1), (2, 2)]
    assert sum(share.num_tokens for share in hindi.sources) == hindi.num_tokens


def test_the_folder_holds_shards_indices_tokenizer_report_and_a_manifest_that_matches_them(corpus: Path, tmp_path: Path):
    out = tmp_path / "deep" / "data"
    manifest = prepare([corpus], MODEL, out, ALL)
    shards = [f"{language}.train-00000.{kind}" for language in ("english", "hindi") for kind in ("documents", "tokens")]
    assert sorted(tree(out)) == sorted(["data.json", "report.json", "tokenizer.model", *shards])
    assert read_data_manifest(out) == manifest
    assert {name: (out / name).stat().st_size for name in manifest.files} == manifest.files
    for stream in manifest.streams:
        for shard in stream.shards:
            assert sha256_of_file(out / shard.name) == shard.sha256
            assert sha256_of_file(out / shard.index.name) == shard.index.sha256
    assert sha256_of_file(out / manifest.tokenizer_file) == manifest.tokenizer_sha256
    assert [entry.name for entry in out.parent.iterdir()] == ["data"]


def test_the_index_says_where_each_document_came_from(corpus: Path, tmp_path: Path):
    manifest = prepare([corpus], MODEL, tmp_path / "data", ALL)
    index = np.fromfile(tmp_path / "data" / "hindi.train-00000.documents", "<u4").reshape(-1, 3)
    first, second = len(encoded("पहला")), len(encoded("पहला", "नमस्ते दुनिया"))
    assert index.tolist() == [[0, 1, 1], [first, 2, 1], [second, 2, 2]]
    assert manifest.sources[2].name == "hindi/b.jsonl"


def test_shards_of_any_size_hold_the_same_stream_and_are_the_same_data(corpus: Path, tmp_path: Path):
    whole = prepare([corpus], MODEL, tmp_path / "whole", ALL)
    cut = prepare([corpus], MODEL, tmp_path / "cut", ALL.evolve(shard_bytes=10))
    assert len(cut.languages["hindi"].shards) > 2
    assert {shard.num_tokens for shard in cut.languages["hindi"].shards[:-1]} == {5}
    for language in whole.languages:
        assert tokens_of(tmp_path / "cut", cut, cut.languages[language]) == tokens_of(
            tmp_path / "whole", whole, whole.languages[language]
        )
    assert cut.data_sha256 == whole.data_sha256


def test_the_same_call_again_changes_nothing(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    first = prepare([corpus], MODEL, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    progress = Listener()
    assert prepare([corpus], MODEL, out, progress=progress) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert progress.said == [f"{out} holds this data already"]


def test_a_corpus_at_another_place_gives_the_same_data(corpus: Path, tmp_path: Path):
    one = prepare([corpus], MODEL, tmp_path / "one")
    corpus.rename(tmp_path / "moved")
    assert prepare([tmp_path / "moved"], MODEL, tmp_path / "two") == one
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_text_that_one_language_holds_out_is_trained_on_in_no_other_whichever_share_that_one_has(tmp_path: Path):
    for language in ("aa", "bb"):
        own = texts(*(f"only {language} {number}" for number in range(40)))
        write_lines(tmp_path / language / language / "x.jsonl", *texts(*(f"shared {number}" for number in range(100))), *own)
    recipe = Recipe(validation_share=0.0, validation_shares={"bb": 0.5})
    alone = prepare([tmp_path / "bb"], MODEL, tmp_path / "one", recipe)
    both = prepare([tmp_path / "aa", tmp_path / "bb"], MODEL, tmp_path / "two", recipe)
    held_out = documents_of(tmp_path / "one", alone, alone.languages["bb"].validation)
    assert documents_of(tmp_path / "two", both, both.languages["bb"].validation) == held_out
    assert not set(held_out) & set(documents_of(tmp_path / "two", both, both.languages["aa"]))


def test_shares_of_single_languages_and_kept_duplicates_do_not_go_together(tmp_path: Path, corpus: Path):
    with pytest.raises(UserError, match="--keep-duplicates cannot be combined with a --validation share"):
        prepare([corpus], MODEL, tmp_path / "data", Recipe(deduplicate=False, validation_shares={"hindi": 0.1}))


def test_a_share_for_a_language_that_is_not_there_is_noticed(tmp_path: Path, corpus: Path):
    with pytest.raises(UserError, match="has no such language") as caught:
        prepare([corpus], MODEL, tmp_path / "data", Recipe(validation_shares={"hidni": 0.1}))
    assert caught.value.remedy == "did you mean 'hindi'?"


@pytest.mark.parametrize("name", ["a", "b"])
def test_data_of_a_corpus_that_has_changed_is_not_overwritten_unless_that_is_asked_for(name: str, corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    prepare([corpus], MODEL, out)
    before = tree(out)
    path = corpus / "hindi" / f"{name}.jsonl"
    path.write_text(path.read_text().replace(r"\u093e", r"\u0940"))  # another vowel, and as long as it was
    with pytest.raises(UserError, match="another corpus"):
        prepare([corpus], MODEL, out)
    assert tree(out) == before
    assert prepare([corpus], MODEL, out, replace=True) == prepare([corpus], MODEL, tmp_path / "anew")
    assert tree(out) == tree(tmp_path / "anew")


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path, corpus: Path, replace: bool):
    thesis = write_lines(tmp_path / "home" / "thesis.txt", "years of work")
    with pytest.raises(UserError, match="holds no prepared data"):
        prepare([corpus], MODEL, tmp_path / "home", replace=replace)
    assert thesis.read_text() == "years of work\n"


@pytest.mark.parametrize("out", ["corpus", "."])
def test_a_data_folder_that_would_replace_the_corpus_is_refused(tmp_path: Path, corpus: Path, out: str):
    (tmp_path / out / "data.json").write_text("{}")
    before = tree(corpus)
    with pytest.raises(UserError, match="would replace the corpus folder"):
        prepare([corpus], MODEL, tmp_path / out, replace=True)
    assert tree(corpus) == before


def test_what_is_replaced_is_there_whole_until_the_new_data_is(tmp_path: Path, corpus: Path):
    out = tmp_path / "data"
    prepare([corpus], MODEL, out)
    write_lines(corpus / "english" / "more.jsonl", *texts("a gull"))
    seen: list[tuple[str, str, bool]] = []
    crash_points.observe(lambda kind, name: seen.append((kind, name, (out / "data.json").exists())))
    try:
        prepare([corpus], MODEL, out, replace=True)
    finally:
        crash_points.observe(None)
    assert [(kind, name) for kind, name, there in seen if not there] == [("rename", "replaced")]


def test_data_of_another_tokenizer_is_not_overwritten(corpus: Path, tmp_path: Path):
    prepare([corpus], MODEL, tmp_path / "data")
    other = tmp_path / "other.model"
    other.write_bytes(MODEL.read_bytes() + b"\xda\x3e\x00")  # an unknown empty field: another file, the same pieces
    with pytest.raises(UserError, match="another tokenizer"):
        prepare([corpus], other, tmp_path / "data")


def test_data_of_another_recipe_is_not_overwritten_and_the_difference_is_named(corpus: Path, tmp_path: Path):
    prepare([corpus], MODEL, tmp_path / "data")
    with pytest.raises(UserError, match="another recipe: min_characters 0"):
        prepare([corpus], MODEL, tmp_path / "data", Recipe(min_characters=3))


def test_prepared_data_with_a_damaged_shard_is_not_taken_for_good(corpus: Path, tmp_path: Path):
    prepare([corpus], MODEL, tmp_path / "data")
    (tmp_path / "data" / "hindi.train-00000.tokens").unlink()
    with pytest.raises(DataError, match="missing or truncated"):
        prepare([corpus], MODEL, tmp_path / "data")


def test_a_folder_with_other_things_in_it_is_left_alone(corpus: Path):
    before = tree(corpus)
    with pytest.raises(UserError, match="holds no prepared data"):
        prepare([corpus], MODEL, corpus)
    assert tree(corpus) == before


def test_an_empty_folder_may_be_filled(corpus: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    manifest = prepare([corpus], MODEL, tmp_path / "data")
    assert read_data_manifest(tmp_path / "data") == manifest


# ---------------------------------------------------------------------- what is left out, held out and dropped


def test_one_malformed_line_in_a_hundred_is_skipped_and_reported(tmp_path: Path):
    write_lines(tmp_path / "corpus" / "hindi" / "a.jsonl", *texts(*map(str, range(99))), "{broken")
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", ALL)
    assert manifest.languages["hindi"].num_documents == 99
    assert manifest.skipped == {"not JSON": 1}
    assert "skipped: 1 not JSON" in summary(manifest, tmp_path / "data")
    report = Report.from_json((tmp_path / "data" / "report.json").read_bytes(), "report.json")
    assert report.sources[0].skipped == {"not JSON": 1}
    assert [(example.record, example.excerpt) for example in report.sources[0].examples["not JSON"]] == [(100, "{broken")]


def test_more_than_one_malformed_line_in_a_hundred_is_an_error_with_the_first_places(tmp_path: Path):
    lines = [*texts(*["पाठ"] * 98), "{broken", '{"title": "x"}']
    path = write_lines(tmp_path / "corpus" / "hindi" / "a.jsonl", *lines)
    with pytest.raises(DataError, match="2 of 100 records have no usable text") as caught:
        prepare([tmp_path / "corpus"], MODEL, tmp_path / "data")
    assert f"{path}, line 99: {Reason.NOT_JSON}" in caught.value.what
    assert f"{path}, line 100: {Reason.NO_TEXT}" in caught.value.what
    assert not (tmp_path / "data").exists()
    recipe = Recipe(max_malformed_share=0.02, validation_share=0.0)
    assert prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", recipe).skipped == {
        Reason.NOT_JSON: 1,
        Reason.NO_TEXT: 1,
    }


def test_a_language_without_any_text_is_an_error(corpus: Path, tmp_path: Path):
    write_lines(corpus / "konkani" / "a.jsonl")
    with pytest.raises(DataError, match="'konkani' has no usable text"):
        prepare([corpus], MODEL, tmp_path / "data")


def test_a_language_that_is_dropped_whole_is_an_error_that_says_why(corpus: Path, tmp_path: Path):
    write_lines(corpus / "konkani" / "a.jsonl", *texts("the sea"))
    with pytest.raises(DataError, match="'konkani' has no document left to train on: 1 duplicate"):
        prepare([corpus], MODEL, tmp_path / "data", ALL)


def test_a_text_is_trained_on_once_whichever_source_language_or_unit_it_is_in(tmp_path: Path):
    first, second = tmp_path / "one", tmp_path / "two"
    write_lines(first / "english" / "a.jsonl", *texts("same", "own", "same"))
    write_lines(first / "hindi" / "a.jsonl", *texts("पाठ", "same"))
    write_lines(second / "english" / "a.jsonl", *texts("same", "more"))
    manifest = prepare([first, second], MODEL, tmp_path / "data", ALL, pack_bytes=10)
    assert documents_of(tmp_path / "data", manifest, manifest.languages["english"]) == ["same", "own", "more"]
    assert documents_of(tmp_path / "data", manifest, manifest.languages["hindi"]) == ["पाठ"]
    assert manifest.languages["english"].dropped == {Rule.DUPLICATE: 2}
    report = Report.from_json((tmp_path / "data" / "report.json").read_bytes(), "report.json")
    found = {
        (source.corpus, source.name): [(example.record, example.excerpt, example.same_as) for example in examples]
        for source in report.sources
        for examples in source.examples.values()
    }
    assert found == {
        (0, "english/a.jsonl"): [(3, "same", "corpus 0: english/a.jsonl, line 1")],
        (1, "english/a.jsonl"): [(1, "same", "corpus 0: english/a.jsonl, line 1")],
        (0, "hindi/a.jsonl"): [(2, "same", "corpus 0: english/a.jsonl, line 1")],
    }


def test_two_files_of_one_content_are_no_former_preparation(tmp_path: Path):
    for name in ("a", "b"):
        write_lines(tmp_path / "corpus" / "english" / f"{name}.jsonl", *texts("a boat", "the sea", "the rain"))
    listener = Listener()
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", ALL, pack_bytes=10, progress=listener)
    assert manifest.languages["english"].num_documents == 3
    assert not [line for line in listener.said if "former preparation" in line]


def test_duplicates_stay_when_that_is_asked_for(tmp_path: Path):
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts("same", "same"))
    recipe = Recipe(deduplicate=False, validation_share=0.0)
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", recipe)
    assert manifest.languages["english"].num_documents == 2


def test_what_cleaning_changed_and_dropped_is_counted_with_three_examples(tmp_path: Path):
    lines = texts("x", "yy", "z", "w", "long enough", "with a bell\x07 in it", "\x01")
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *lines)
    recipe = Recipe(min_characters=3, validation_share=0.0)
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", recipe)
    assert documents_of(tmp_path / "data", manifest, manifest.languages["english"]) == ["long enough", "with a bell in it"]
    report = Report.from_json((tmp_path / "data" / "report.json").read_bytes(), "report.json").sources[0]
    assert report.dropped == {Rule.SHORT: 4, Rule.EMPTY: 1}
    assert report.changed == {Rule.CONTROL: 2}
    assert [example.excerpt for example in report.examples[Rule.SHORT]] == ["x", "yy", "z"]
    assert "dropped: 4 too short" in summary(manifest, tmp_path / "data")


def test_what_is_held_out_is_never_trained_on_and_stays_held_out_when_text_is_added(tmp_path: Path):
    numbers = [f"document {number}" for number in range(400)]
    write_lines(tmp_path / "corpus" / "english" / "b.jsonl", *texts(*numbers))
    recipe = Recipe(validation_share=0.1)
    before = prepare([tmp_path / "corpus"], MODEL, tmp_path / "before", recipe)
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts(*[f"more {number}" for number in range(400)], *numbers[:50]))
    write_lines(tmp_path / "corpus" / "hindi" / "a.jsonl", *texts("एक", "दो", *numbers))
    after = prepare([tmp_path / "corpus"], MODEL, tmp_path / "after", recipe)

    def split(folder: str, manifest: DataManifest) -> tuple[set[str], set[str]]:
        english = manifest.languages["english"]
        path = tmp_path / folder
        return set(documents_of(path, manifest, english)), set(documents_of(path, manifest, english.validation))

    trained_before, held_before = split("before", before)
    trained_after, held_after = split("after", after)
    assert 20 < len(held_before) < 60
    assert held_before < held_after
    assert trained_before < trained_after
    assert not trained_after & held_after
    assert not set(documents_of(tmp_path / "after", after, after.languages["hindi"])) & held_after


def test_a_language_may_hold_out_a_share_of_its_own(tmp_path: Path):
    for language in ("english", "konkani"):
        write_lines(tmp_path / "corpus" / language / "a.jsonl", *texts(*[f"{language} {number}" for number in range(300)]))
    recipe = Recipe(validation_share=0.0, validation_shares={"konkani": 0.2})
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", recipe)
    assert manifest.languages["english"].validation is None
    konkani = manifest.languages["konkani"]
    assert konkani.validation is not None
    assert 30 < konkani.validation.num_documents < 90
    assert sum(share.num_held_out for share in konkani.sources) == konkani.validation.num_documents
    assert konkani.validation.num_documents + konkani.num_documents == 300


def test_the_language_may_be_a_field_of_each_record(tmp_path: Path):
    rows = [("kok", "एक"), ("en", "one"), ("kok", "दोन"), ("en", "two")]
    write_lines(tmp_path / "corpus" / "all.jsonl", *(json.dumps({"lang": language, "body": text}) for language, text in rows))
    recipe = Recipe(text_field="body", language_field="lang", validation_share=0.0)
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", recipe)
    found = {name: documents_of(tmp_path / "data", manifest, data) for name, data in manifest.languages.items()}
    assert found == {"en": ["one", "two"], "kok": ["एक", "दोन"]}


# ---------------------------------------------------------------------- parts


def test_parts_hold_all_shards_each_part_within_its_size_with_flat_unique_names(tmp_path: Path):
    for language in ("english", "hindi"):
        lines = texts(*[f"{language} document number {number}" for number in range(600)])
        write_lines(tmp_path / "corpus" / language / "a.jsonl", *lines)
    recipe = Recipe(shard_bytes=1024, max_part_bytes=6000, validation_share=0.02)
    out = tmp_path / "data"
    manifest = prepare([tmp_path / "corpus"], MODEL, out, recipe)
    whole = prepare([tmp_path / "corpus"], MODEL, tmp_path / "whole", Recipe(validation_share=0.02))
    assert manifest.data_sha256 == whole.data_sha256
    parts = sorted(path for path in out.iterdir() if path.is_dir())
    assert len(parts) > 3
    assert {str(path.relative_to(out)) for path in out.rglob("*.*") if path.parent != out} == {
        *manifest.files,
        *(f"{part.name}/part.json" for part in parts),
    }
    names = [name.rpartition("/")[2] for name in manifest.files]
    assert len(set(names)) == len(names)
    for part in parts:
        listed = json.loads((part / "part.json").read_text())
        assert listed["data_sha256"] == manifest.data_sha256
        assert {file["name"]: file["sha256"] for file in listed["files"]} == {
            path.name: sha256_of_file(path) for path in part.iterdir() if path.name != "part.json"
        }
        assert sum(file["num_bytes"] for file in listed["files"]) <= 6000


def test_a_part_takes_no_more_than_fifty_files(tmp_path: Path):
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts(*[f"document number {number}" for number in range(5000)]))
    recipe = Recipe(shard_bytes=1024, max_part_bytes=10**9)
    prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", recipe)
    counts = [len(list(path.iterdir())) for path in (tmp_path / "data").iterdir() if path.is_dir()]
    assert len(counts) > 1
    assert max(counts) <= 47  # room for the manifest, the tokenizer and a note of the store


def test_a_part_that_cannot_hold_a_shard_is_refused_before_anything_is_read(corpus: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--max-part-size is too small: 2048 bytes for a shard of 4096 and its index"):
        prepare([corpus], MODEL, tmp_path / "data", Recipe(shard_bytes=4096, max_part_bytes=2048))


def test_a_part_that_cannot_hold_a_shard_with_its_index_is_refused(tmp_path: Path):
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts(*[str(number) for number in range(500)]))
    with pytest.raises(UserError, match="and its index have"):
        prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", Recipe(shard_bytes=1024, max_part_bytes=1025))


# ---------------------------------------------------------------------- when things go wrong


def test_a_place_that_cannot_be_written_says_so(corpus: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        prepare([corpus], MODEL, tmp_path / "file" / "data")


def test_two_calls_at_once_do_not_mix(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    with staging_beside(out), pytest.raises(TemporaryError, match="another process is preparing"):
        prepare([corpus], MODEL, out)
    assert prepare([corpus], MODEL, out)


def test_a_file_that_breaks_off_is_named_and_once_it_is_replaced_the_work_before_it_is_used_again(tmp_path: Path):
    import gzip

    good = write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts(*[f"document {number}" for number in range(500)]))
    bad = tmp_path / "corpus" / "english" / "b.jsonl.gz"
    whole = gzip.compress("\n".join(texts("one", "two", "three")).encode())
    bad.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"b\.jsonl\.gz"):
        prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", ALL, pack_bytes=2000)
    bad.write_bytes(whole)
    progress = Listener()
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", ALL, pack_bytes=2000, progress=progress)
    assert progress.said[0] == "resuming an earlier preparation"
    assert manifest.languages["english"].num_documents == 503
    assert good.exists()


def test_a_link_in_the_place_of_the_staging_folder_is_not_followed(tmp_path: Path):
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts("one document with some words in it"))
    (tmp_path / "outside").mkdir()
    (tmp_path / ".data.staging").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a link or a file"):
        prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", num_workers=1)
    assert list((tmp_path / "outside").iterdir()) == []


# ---------------------------------------------------------------------- real text


def test_the_sample_corpus_has_hundreds_of_different_sentences_in_each_language():
    for language in ("english", "hindi", "konkani"):
        paths = sorted((sample_corpus_dir() / language).glob("*.jsonl"))
        lines = [line for path in paths for line in path.read_text().splitlines()]
        sentences = [
            sentence.strip()
            for line in lines
            for sentence in json.loads(line)["text"].replace("।", ".").replace("?", ".").replace("!", ".").split(".")
            if sentence.strip()
        ]
        assert len(sentences) >= 300
        assert len(set(sentences)) == len(sentences)


@pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason=f"the real corpus is not at {SHARED / 'corpus'}")
def test_the_real_corpus_is_prepared_whole_and_its_report_agrees_with_the_known_counts(tmp_path: Path):
    known = json.loads((SHARED / "corpus" / "token_counts.json").read_text())
    manifest = prepare([SHARED / "corpus"], SHARED / "corpus" / "multilingual.model", tmp_path / "data")
    for name in ("english", "hindi", "konkani"):
        data = manifest.languages[name]
        assert data.validation is not None
        assert data.num_tokens + data.validation.num_tokens == known[name]["tokens_with_bos_eos"]
        assert data.num_documents + data.validation.num_documents == known[name]["docs"]
        total = data.num_bytes_text + data.validation.num_bytes_text
        assert round(total / known[name]["tokens"], 3) == known[name]["bytes_per_token"]
    assert not manifest.skipped
    report = Report.from_json((tmp_path / "data" / "report.json").read_bytes(), "report.json")
    assert {source.name for source in report.sources} == set(known["files"])
    assert not any(source.dropped or source.changed for source in report.sources)

    whole = prepare([SHARED / "corpus"], SHARED / "corpus" / "multilingual.model", tmp_path / "all", ALL)
    tokens = {
        whole.sources[share.source].name: share.num_tokens - 2 * share.num_documents
        for data in whole.languages.values()
        for share in data.sources
    }
    assert tokens == known["files"]


def test_more_languages_than_a_process_may_have_open_files(tmp_path: Path):
    records = [json.dumps({"text": f"word {number}", "lang": f"l{number}"}) for number in range(200)]
    write_lines(tmp_path / "corpus" / "all" / "a.jsonl", *records)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", Recipe(validation_share=0.0, language_field="lang"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(manifest.languages) == 200


def test_a_field_that_holds_no_languages_is_noticed_by_their_number(tmp_path: Path):
    records = [json.dumps({"text": f"word {number}", "url": f"u{number}"}) for number in range(70_000)]
    write_lines(tmp_path / "corpus" / "all" / "a.jsonl", *records)
    with pytest.raises(DataError, match="more than 10,000 languages: 'u0', 'u1', ") as caught:
        prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", Recipe(language_field="url"))
    assert caught.value.remedy == "--language-field url may name the wrong field"
