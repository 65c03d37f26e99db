import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from state.data_manifest import DataManifest
from state.errors import DataError, TemporaryError, UserError
from worker.corpus.prepare import main, prepare, summary
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.corpus.staging import staged_folder
from worker.corpus.tokenizer import load_tokenizer
from worker.data import read_data_manifest

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("GEMMA_ORCH_SHARED", REPOSITORY.parent / "shared"))


def write_lines(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def texts(*values: str) -> list[str]:
    return [json.dumps({"text": value}) for value in values]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    write_lines(root / "hindi" / "b.jsonl", *texts("नमस्ते दुनिया", "दूसरा"))
    write_lines(root / "hindi" / "a.jsonl", *texts("पहला"))
    write_lines(root / "english" / "x.jsonl", *texts("the sea", "the rain", "a boat"))
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stream(folder: Path, manifest: DataManifest, language: str) -> list[int]:
    dtype = "<u2" if manifest.token_bytes == 2 else "<u4"
    shards = [np.fromfile(folder / shard.name, dtype) for shard in manifest.languages[language].shards]
    tokens: list[int] = np.concatenate(shards).tolist()
    return tokens


def test_documents_become_tokens_in_file_order_between_bos_and_eos(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    manifest = prepare([corpus], sample_tokenizer_path(), out)
    encode = load_tokenizer(sample_tokenizer_path()).processor.encode
    expected = [[2, *encode(text), 1] for text in ("पहला", "नमस्ते दुनिया", "दूसरा")]
    assert stream(out, manifest, "hindi") == list(itertools.chain.from_iterable(expected))
    assert manifest.tokens_by_language["hindi"] == sum(map(len, expected))
    assert manifest.languages["hindi"].num_documents == 3
    assert manifest.languages["hindi"].num_bytes_text == len("पहलानमस्ते दुनियादूसरा".encode())
    assert [source.name for source in manifest.languages["hindi"].sources] == ["hindi/a.jsonl", "hindi/b.jsonl"]


def test_the_folder_holds_shards_tokenizer_and_a_manifest_that_matches_them(corpus: Path, tmp_path: Path):
    out = tmp_path / "deep" / "data"
    manifest = prepare([corpus], sample_tokenizer_path(), out)
    assert sorted(tree(out)) == ["data.json", "english/00000.tokens", "hindi/00000.tokens", "tokenizer.model"]
    assert read_data_manifest(out) == manifest
    for language in manifest.languages.values():
        for shard in language.shards:
            assert hashlib.sha256((out / shard.name).read_bytes()).hexdigest() == shard.sha256
    assert hashlib.sha256((out / manifest.tokenizer_file).read_bytes()).hexdigest() == manifest.tokenizer_sha256
    assert not (out.parent / ".data.staging").exists()


def test_shards_of_any_size_hold_the_same_stream(corpus: Path, tmp_path: Path):
    whole = prepare([corpus], sample_tokenizer_path(), tmp_path / "whole")
    cut = prepare([corpus], sample_tokenizer_path(), tmp_path / "cut", shard_bytes=10)
    assert len(cut.languages["hindi"].shards) > 2
    assert {shard.num_tokens for shard in cut.languages["hindi"].shards[:-1]} == {5}
    for language in whole.languages:
        assert stream(tmp_path / "cut", cut, language) == stream(tmp_path / "whole", whole, language)


def test_many_documents_go_through_the_encoder_in_batches_without_a_seam(tmp_path: Path):
    many = [f"document number {number}" for number in range(5000)]
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts(*many))
    manifest = prepare([tmp_path / "corpus"], sample_tokenizer_path(), tmp_path / "data", num_threads=2)
    encode = load_tokenizer(sample_tokenizer_path()).processor.encode
    expected = [token for text in many for token in (2, *encode(text), 1)]
    assert stream(tmp_path / "data", manifest, "english") == expected


def test_the_same_call_again_changes_nothing(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    first = prepare([corpus], sample_tokenizer_path(), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    said: list[str] = []
    assert prepare([corpus], sample_tokenizer_path(), out, say=said.append) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert said == [f"{out} holds this data already"]


def test_a_corpus_at_another_place_gives_the_same_data(corpus: Path, tmp_path: Path):
    one = prepare([corpus], sample_tokenizer_path(), tmp_path / "one")
    corpus.rename(tmp_path / "moved")
    assert prepare([tmp_path / "moved"], sample_tokenizer_path(), tmp_path / "two") == one
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_data_of_a_corpus_that_has_changed_is_not_overwritten(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    prepare([corpus], sample_tokenizer_path(), out)
    before = tree(out)
    write_lines(corpus / "hindi" / "a.jsonl", *texts("बदला हुआ"))
    with pytest.raises(UserError, match="another corpus"):
        prepare([corpus], sample_tokenizer_path(), out)
    assert tree(out) == before


def test_data_of_another_tokenizer_is_not_overwritten(corpus: Path, tmp_path: Path):
    prepare([corpus], sample_tokenizer_path(), tmp_path / "data")
    other = tmp_path / "other.model"
    model = sample_tokenizer_path().read_bytes()
    other.write_bytes(model + b"\xda\x3e\x00")  # an unknown empty field: another file, the same pieces
    with pytest.raises(UserError, match="another tokenizer"):
        prepare([corpus], other, tmp_path / "data")


def test_prepared_data_with_a_damaged_shard_is_not_taken_for_good(corpus: Path, tmp_path: Path):
    prepare([corpus], sample_tokenizer_path(), tmp_path / "data")
    (tmp_path / "data" / "hindi" / "00000.tokens").unlink()
    with pytest.raises(DataError, match="missing or truncated"):
        prepare([corpus], sample_tokenizer_path(), tmp_path / "data")


def test_a_folder_with_other_things_in_it_is_left_alone(corpus: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds no prepared data"):
        prepare([corpus], sample_tokenizer_path(), corpus)
    assert sorted(tree(corpus)) == ["english/x.jsonl", "hindi/a.jsonl", "hindi/b.jsonl"]


def test_an_empty_folder_may_be_filled(corpus: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    manifest = prepare([corpus], sample_tokenizer_path(), tmp_path / "data")
    assert read_data_manifest(tmp_path / "data") == manifest


def test_one_malformed_line_in_a_hundred_is_skipped_and_reported(tmp_path: Path):
    path = write_lines(tmp_path / "corpus" / "hindi" / "a.jsonl", *texts(*["पाठ"] * 99), "{broken")
    manifest = prepare([tmp_path / "corpus"], sample_tokenizer_path(), tmp_path / "data")
    assert manifest.languages["hindi"].num_documents == 99
    assert manifest.languages["hindi"].skipped == {"not JSON": 1}
    report = summary(manifest)
    assert "1 not JSON" in report
    assert f"{path}, line 100: not JSON" in report


def test_more_than_one_malformed_line_in_a_hundred_is_an_error_with_the_first_places(tmp_path: Path):
    lines = [*texts(*["पाठ"] * 98), "{broken", '{"title": "x"}']
    path = write_lines(tmp_path / "corpus" / "hindi" / "a.jsonl", *lines)
    with pytest.raises(DataError, match="2 of 100 lines are malformed") as caught:
        prepare([tmp_path / "corpus"], sample_tokenizer_path(), tmp_path / "data")
    assert f"{path}, line 99: not JSON" in caught.value.what
    assert f'{path}, line 100: no "text"' in caught.value.what
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["corpus"]


def test_a_language_without_any_text_is_an_error(corpus: Path, tmp_path: Path):
    write_lines(corpus / "konkani" / "a.jsonl")
    with pytest.raises(DataError, match="'konkani' has no usable line"):
        prepare([corpus], sample_tokenizer_path(), tmp_path / "data")


def test_an_unreadable_source_is_named_before_and_after_preparing(corpus: Path, tmp_path: Path):
    prepare([corpus], sample_tokenizer_path(), tmp_path / "data")
    (corpus / "hindi" / "b.jsonl").unlink()
    (corpus / "hindi" / "b.jsonl").symlink_to("nowhere")
    for out in ("data", "new"):
        with pytest.raises(DataError, match=r"b\.jsonl cannot be read"):
            prepare([corpus], sample_tokenizer_path(), tmp_path / out)


def test_a_place_that_cannot_be_written_says_so(corpus: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        prepare([corpus], sample_tokenizer_path(), tmp_path / "file" / "data")


def test_two_calls_at_once_do_not_mix(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    with staged_folder(out) as staging:
        with pytest.raises(TemporaryError, match="another process is preparing"):
            prepare([corpus], sample_tokenizer_path(), out)
        (staging / "kept").touch()
    assert (out / "kept").exists()


def test_a_disk_that_fills_up_leaves_nothing_and_the_same_call_finishes_later(corpus: Path, tmp_path: Path):
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from worker.corpus.prepare import prepare\n"
        "from state.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"
        "try:\n"
        "    prepare([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    out = tmp_path / "data"
    result = subprocess.run(
        [sys.executable, "-c", script, str(corpus), str(sample_tokenizer_path()), str(out)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written (File too large)" in result.stdout
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["corpus"]
    prepare([corpus], sample_tokenizer_path(), out)
    assert sorted(tree(out)) == ["data.json", "english/00000.tokens", "hindi/00000.tokens", "tokenizer.model"]


KILLED_AFTER_N_EFFECTS = """
import os, signal, sys
from pathlib import Path
from state import effects
from worker.corpus.prepare import prepare

left = int(sys.argv[1])

def count(kind, what):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

effects.observe(count)
prepare([Path(sys.argv[2])], Path(sys.argv[3]), Path(sys.argv[4]), shard_bytes=20)
"""


def test_killed_after_any_effect_the_same_call_again_ends_with_the_same_bytes(corpus: Path, tmp_path: Path):
    prepare([corpus], sample_tokenizer_path(), tmp_path / "whole", shard_bytes=20)
    expected = tree(tmp_path / "whole")
    out = tmp_path / "killed" / "data"
    num_kills = 0
    for number in range(1, 100):
        child = subprocess.run(
            [sys.executable, "-c", KILLED_AFTER_N_EFFECTS, str(number), str(corpus), str(sample_tokenizer_path()), str(out)],
            cwd=REPOSITORY,
            check=False,
        )
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        num_kills += 1
        if out.exists():  # it is there whole, or not at all
            assert tree(out) == expected
    assert num_kills >= 8
    assert tree(out) == expected
    assert [entry.name for entry in out.parent.iterdir()] == ["data"]


def test_the_command_prints_the_manifest_on_stdout_and_talks_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--out", str(tmp_path / "data"), "--json"]) == 0
    printed = capsys.readouterr()
    manifest = DataManifest.from_json(printed.out, "stdout")
    assert manifest == read_data_manifest(tmp_path / "data")
    assert list(manifest.languages) == ["english", "hindi", "konkani"]
    assert f"{manifest.tokens_by_language['konkani']:,}" in printed.err


def test_the_command_takes_several_corpora(corpus: Path, tmp_path: Path):
    other = write_lines(tmp_path / "other" / "hindi" / "a.jsonl", *texts("और पाठ")).parents[1]
    common = ["--tokenizer", str(sample_tokenizer_path())]
    main(["--corpus", str(corpus), str(other), "--out", str(tmp_path / "one"), *common])
    main(["--corpus", str(corpus), "--corpus", str(other), "--out", str(tmp_path / "two"), *common])
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert read_data_manifest(tmp_path / "one").languages["hindi"].num_documents == 4


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
def test_the_real_corpus_has_the_known_number_of_tokens(tmp_path: Path):
    known = json.loads((SHARED / "corpus" / "token_counts.json").read_text())
    manifest = prepare([SHARED / "corpus"], SHARED / "corpus" / "multilingual.model", tmp_path / "data")
    assert manifest.tokens_by_language == {
        language: known[language]["tokens_with_bos_eos"] for language in ("english", "hindi", "konkani")
    }
    assert {name: data.num_documents for name, data in manifest.languages.items()} == {
        language: known[language]["docs"] for language in ("english", "hindi", "konkani")
    }
    assert not any(data.skipped for data in manifest.languages.values())
