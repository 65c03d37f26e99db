from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from state.architecture import ModelSpec, resolve_architecture
from state.data_manifest import DataManifest
from state.errors import DataError, UserError
from state.spec import SessionData, SessionSpec, TrainingSpec
from tests.token_data import write_data
from worker.corpus.prepare import prepare
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.data.batches import TokenData, read_data_manifest
from worker.data.versions import open_version, open_versions
from worker.inspect_data.documents import DocumentIndex
from worker.inspect_data.show import data_overview, decoded, main, read_step, run_overview
from worker.inspect_data.table import StepRead, overview_text, step_text
from worker.tokenizer.tokenizer import load_tokenizer

T, B, STEPS = 16, 4, 50
MIXTURE = {"en": 0.75, "hi": 0.25}


def version(folder: Path, first_step: int = 0, mixture: dict[str, float] | None = None) -> SessionData:
    manifest = read_data_manifest(folder)
    return SessionData(first_step=first_step, data_dir=str(folder), data_sha256=manifest.data_sha256, mixture=mixture or MIXTURE)


def session(*versions: SessionData, total_steps: int = STEPS, sequence_length: int = T) -> SessionSpec:
    return SessionSpec(
        run="small",
        session=1,
        attempt=1,
        fence=1,
        architecture=resolve_architecture(ModelSpec(), read_data_manifest(Path(versions[0].data_dir)).vocab_size),
        training=TrainingSpec(seed=3, batch_size=B),
        sequence_length=sequence_length,
        data=versions,
        checkpoints_dir="/nowhere",
        total_steps=total_steps,
        limit_s=60.0,
        checkpoint_every_s=60.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tokens say where they stand: the n-th token of en is n, of hi 20 000 + n; a document begins at each multiple of 50."""
    write_data(
        tmp_path / "data",
        {"en": np.arange(5000), "hi": 20_000 + np.arange(1500)},
        shard_tokens=1000,
        validation={"hi": np.arange(120)},
    )
    return tmp_path / "data"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    prepare([sample_corpus_dir()], sample_tokenizer_path(), out, num_workers=1)
    return out


@pytest.fixture(scope="module")
def sample_session(sample: Path) -> SessionSpec:
    return session(version(sample, mixture={"english": 0.4, "hindi": 0.3, "konkani": 0.3}), sequence_length=300)


def write(spec: SessionSpec, folder: Path) -> list[str]:
    path = folder / "session.json"
    path.write_bytes(spec.to_json())
    return ["--session", str(path)]


@pytest.mark.parametrize("step", [1, 2, 17, STEPS])
def test_a_step_shows_the_documents_of_the_very_tokens_that_the_trainer_gets(folder: Path, step: int) -> None:
    spec = session(version(folder))
    inputs, targets = open_versions(spec).batch(step - 1)  # the trainer's first step is its number 0
    shown = read_step(spec, step)
    assert len(shown.sequences) == B
    for sequence, tokens in zip(shown.sequences, np.concatenate([inputs, targets[:, -1:]], axis=1), strict=True):
        offset = 0 if sequence.language == "en" else 20_000
        assert tokens[0] == offset + sequence.first_token
        assert sequence.first_token == sequence.sequence * T
        for piece in sequence.documents:
            begin = int(tokens[piece.first_token]) - offset
            assert (piece.record, piece.document_offset) == (begin // 50 + 1, begin % 50)
            assert piece.source == f"{sequence.language}/00.jsonl"
        assert sum(piece.num_tokens for piece in sequence.documents) == sequence.num_tokens == T + 1


def test_one_sequence_of_a_step_is_as_in_the_whole_step(folder: Path) -> None:
    spec = session(version(folder))
    whole = read_step(spec, 9)
    assert [read_step(spec, 9, only=number).sequences for number in (1, 4)] == [whole.sequences[:1], whole.sequences[3:]]


def test_the_epoch_says_how_often_the_language_was_read_before(folder: Path) -> None:
    spec = session(version(folder, mixture={"hi": 1.0}), total_steps=1000)
    epochs = [sequence.epoch for step in (1, 23, 24, 240) for sequence in read_step(spec, step).sequences]
    num_sequences = (1500 - 1) // T
    samples = [(step - 1) * B + place for step in (1, 23, 24, 240) for place in range(B)]
    assert epochs == [sample // num_sequences for sample in samples]


def test_a_step_reads_the_data_version_that_is_due(folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "later", {"en": np.arange(3000)})
    spec = session(version(folder), version(tmp_path / "later", first_step=10, mixture={"en": 1.0}))
    assert read_step(spec, 10).data_dir == str(folder)
    assert read_step(spec, 11).data_dir == str(tmp_path / "later")
    due = open_version(spec, spec.data[1]).order.step(5)
    later = read_step(spec, 16)  # 10 steps of the first version, and 5 of this one, are done when it begins
    assert [sequence.sequence for sequence in later.sequences] == due.sequence.tolist()
    assert {sequence.language for sequence in later.sequences} == {"en"}


def test_decoded_text_is_what_stands_in_the_corpus_with_special_tokens_named(sample: Path, sample_session: SessionSpec) -> None:
    texts = {
        (path.relative_to(sample_corpus_dir()).as_posix(), number): json.loads(line)["text"]
        for path in sample_corpus_dir().rglob("*.jsonl")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    }
    whole = 0
    for step in range(1, 9):
        for sequence in read_step(sample_session, step, decode=True).sequences:
            for piece in sequence.documents:
                text = texts[piece.source, piece.record]
                assert piece.text is not None
                if piece.text.startswith("<bos>") and piece.text.endswith("<eos>"):
                    assert piece.text == f"<bos>{text}<eos>"
                    whole += 1
                elif piece.document_offset == 0:
                    assert text.startswith(piece.text.removeprefix("<bos>").rstrip("�"))
    assert whole >= 5


def test_the_name_of_an_unknown_piece_is_visible_as_well() -> None:
    tokenizer = load_tokenizer(sample_tokenizer_path())
    text = decoded(tokenizer, [tokenizer.bos_id, *tokenizer.processor.encode("sea"), tokenizer.unk_id, tokenizer.eos_id])
    assert text == "<bos>sea<unk><eos>"


@pytest.mark.parametrize("step", [0, -1, STEPS + 1, 10**30])
def test_a_step_that_the_run_does_not_have_is_refused(folder: Path, step: int) -> None:
    with pytest.raises(UserError, match=rf"there is no step {step} in run small\nExpected: 1 to 50"):
        read_step(session(version(folder)), step)


@pytest.mark.parametrize("number", [0, B + 1])
def test_a_sequence_that_the_step_does_not_have_is_refused(folder: Path, number: int) -> None:
    with pytest.raises(UserError, match=f"there is no sequence {number} in step 2\nExpected: 1 to 4"):
        read_step(session(version(folder)), 2, only=number)


def test_data_that_is_gone_or_other_data_is_an_error_that_names_the_folder(folder: Path, tmp_path: Path) -> None:
    spec = session(version(folder))
    write_data(folder, {"en": np.arange(5000), "hi": np.arange(1400)})
    with pytest.raises(DataError, match=rf"{folder} holds other data than the run reads"):
        run_overview(spec)
    with pytest.raises(UserError, match=rf"the data in {folder} has digest"):
        read_step(spec, 1)
    (folder / "data.json").unlink()
    with pytest.raises(DataError, match="is no data folder"):
        read_step(spec, 1)


def test_an_index_that_has_changed_is_an_error(folder: Path) -> None:
    for path in folder.glob("*.documents"):
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match="has changed"):
        read_step(session(version(folder)), 1)


def test_a_tokenizer_that_has_changed_is_not_decoded_with(sample: Path, tmp_path: Path) -> None:
    manifest = DataManifest.from_json((sample / "data.json").read_bytes(), "sample")
    other = tmp_path / "data"
    other.mkdir()
    for path in sample.iterdir():
        (other / path.name).write_bytes(path.read_bytes() + (b"\0" * 8 if path.name == manifest.tokenizer_file else b""))
    spec = session(version(other, mixture={"english": 1.0}))
    assert read_step(spec, 1)
    with pytest.raises((DataError, UserError), match=manifest.tokenizer_file):
        read_step(spec, 1, decode=True)


def test_the_overview_of_a_run_says_how_often_each_language_is_read(folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "later", {"en": np.arange(3000)})
    versions = (version(folder), version(tmp_path / "later", 10, {"en": 1.0}), version(tmp_path / "later", 400, {"en": 1.0}))
    held, later = run_overview(session(*versions)).versions
    assert (held.first_step, held.last_step, later.first_step, later.last_step) == (1, 10, 11, 50)
    en, hi = held.languages
    assert (en.num_documents, en.num_tokens, en.validation_documents) == (100, 5000, 0)
    assert (hi.num_documents, hi.num_tokens, hi.validation_documents, hi.validation_tokens) == (30, 1500, 3, 120)
    assert (en.share, hi.share) == (0.75, 0.25)
    assert hi.epochs == pytest.approx(10 * B * 0.25 / ((1500 - 1) // T))
    assert later.languages[0].epochs == pytest.approx(40 * B / ((3000 - 1) // T))


def test_the_overview_of_a_folder_knows_no_steps(folder: Path) -> None:
    overview = data_overview(folder)
    assert (overview.run, overview.versions[0].first_step, overview.versions[0].languages[0].share) == (None, None, None)
    text = overview_text(overview)
    assert "hi               30   1,500" in re.sub(r"  +", lambda gap: gap[0], text)
    assert "share" not in text


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_people_get_a_table_and_programs_the_same_as_json(
    sample_session: SessionSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [*write(sample_session, tmp_path), "--step", "3", "--decode"]
    step = StepRead.from_json(shown(capsys, *arguments, "--json"), "stdout")
    assert step == read_step(sample_session, 3, decode=True)
    text = shown(capsys, *arguments)
    assert text.startswith("step 3 of 50 of run small\n4 sequences of 300 tokens and the last target: ")
    for sequence in step.sequences:
        assert f"sequence {sequence.number}: {sequence.language}, epoch {sequence.epoch + 1}, tokens " in text
        for piece in sequence.documents:
            assert f"{piece.source}, line {piece.record}" in text
    assert "<bos>" in text
    assert max(map(len, text.splitlines())) <= 80
    overview = json.loads(shown(capsys, *arguments[:2], "--json"))
    assert [held["language"] for held in overview["versions"][0]["languages"]] == ["english", "hindi", "konkani"]
    assert "steps 1 to 50 of run small read" in shown(capsys, *arguments[:2])
    assert "english" in shown(capsys, "--data", sample_session.data[0].data_dir)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decode"], "add --step N"),
        (["--sequence", "1"], "add --step N"),
        (["--step", "two"], "invalid int value"),
        (["--stepp", "2"], "did you mean '--step'?"),
    ],
)
def test_a_mistake_is_the_users(folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as mistake:
        main([*write(session(version(folder)), tmp_path), *arguments])
    assert words in str(mistake.value)


def test_a_folder_alone_has_no_steps_and_a_session_must_be_there(folder: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--data", str(folder), "--step", "1"], "a data folder alone has no steps"),
        (["--session", str(tmp_path / "none.json")], "none.json cannot be read"),
        (["--data", str(folder), "--session", "x"], "not allowed with"),
        ([], "one of the arguments --session --data is required"),
    ):
        with pytest.raises(UserError, match=words):
            main(arguments)


@pytest.mark.parametrize(
    ("name", "text_documents", "unit"),
    [
        ("a.jsonl", "file", "line"),
        ("a.JSONL.zst", "file", "line"),
        ("a.ndjson", "file", "line"),
        ("a.txt.gz", "paragraphs", "document"),
        ("a.unknown", "file", "document"),
        ("a.parquet", "lines", "row"),
        ("a.txt", "lines", "line"),
        ("a.txt", "paragraphs", "document"),
        ("a.txt", "file", "document"),
    ],
)
def test_a_record_is_named_as_people_count_in_such_a_file(folder: Path, name: str, text_documents: str, unit: str) -> None:
    values: dict[str, Any] = json.loads((folder / "data.json").read_bytes())
    values["recipe"]["text_documents"] = text_documents
    for source in values["sources"]:
        source["name"] = name
        source["corpus"] = 1 if source is values["sources"][0] else 0
    (folder / "data.json").write_text(json.dumps(values))
    step = read_step(session(version(folder)), 1)
    assert {piece.unit for sequence in step.sequences for piece in sequence.documents} == {unit}
    assert f"corpus 2: {name}, {unit} " in step_text(step, width=100)


def test_the_indices_of_a_prepared_folder_place_every_document_where_its_tokens_begin(sample: Path) -> None:
    manifest = read_data_manifest(sample)
    data = TokenData.open(sample, manifest, 1)
    for name, language in manifest.languages.items():
        pieces = DocumentIndex(sample, language).pieces(0, language.num_tokens)
        assert len(pieces) == language.num_documents
        starts = np.array([piece.first_token for piece in pieces])
        assert (data.sequences(name, starts)[:, 0] == manifest.bos_id).all()
