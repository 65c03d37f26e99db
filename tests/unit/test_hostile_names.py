"""What comes from outside names nothing but what it may: no path, no hidden file, no other alphabet's digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kaggle.adopt.read_account import adopt
from orchestrator.backends.kaggle.checkpoints.index import Entry, EntryState, Index
from orchestrator.backends.kaggle.checkpoints.known import Known
from orchestrator.backends.kaggle.publish.dataset import Publication, PublishedFile, publication_folder
from orchestrator.backends.kaggle.session.control_dataset import DataRecords
from orchestrator.backends.simulated import Scenario
from state.clock import ManualClock
from state.data_manifest import Shard, ShardIndex
from state.document import Document
from state.errors import CorruptCheckpointError, DataError, GemmaOrchError, UserError
from state.kaggle.job import CheckpointPlace, KaggleJob
from state.kaggle.names import (
    VersionNote,
    check_run_fits,
    checkpoint_file_names,
    misnamed,
    parse_attempt_dataset_slug,
    parse_attempt_kernel_slug,
)
from state.layout import (
    HomeLayout,
    RunLayout,
    attempt_of,
    check_checkpoint_id,
    checkpoint_id,
    is_checkpoint_id,
    is_data_folder,
    is_file_name,
    is_inner_path,
    parse_attempt_name,
)
from state.ledger import CheckpointState, PutCheckpoint, SetHeader
from state.lineage import resolve
from state.manifest import FileEntry
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import DATA, RUN, START, checkpoint, header, manifest, report, run_spec, session_spec
from tests.fake_kaggle import FakeKaggle
from tests.kaggle_jobs import job_of
from tests.simulation import Simulation
from worker.corpus.parts import PartFile

ID = "step-00000040-s003a1"
HOSTILE = {
    "absolute": "/etc/passwd",
    "above": "../x",
    "folder": "a/b",
    "backslash": "a\\b",
    "empty": "",
    "here": ".",
    "parent": "..",
    "hidden": ".x",
    "NUL": "a\0b",
    "line break": f"{ID}\n",
    "long": "x" * 5000,
    "surrogate": "\ud83d",
}
OTHER_IDS = {
    "digits": "step-0000004०-s003a1",
    "short": "step-40-s003a1",
    "padded": "step-000000040-s003a1",
    "padded session": "step-00000040-s0003a1",
    "endless": f"step-{'9' * 5000}-s003a1",
    "case": ID.upper(),
    "within": f"x/{ID}",
    "more": f"{ID}.staging",
}
OTHER_RUNS = {"case": "Tamil", "hyphen": "-a", "digits": "run-१", "41": "a" * 41}
OTHER_ATTEMPTS = {"digits": "s००3a1", "short": "s3a1", "padded": "s0003a1", "zero": "s003a0", "endless": f"s{'9' * 5000}a1"}
OTHER_FOLDERS = {"name": "elsewhere", "digits": "data-२", "NUL": "/data\0", "relative": "data/../../x"}


def table(*groups: dict[str, str], but: tuple[str, ...] = ()) -> Any:
    named = {name: value for group in groups for name, value in group.items() if name not in but}
    return pytest.mark.parametrize("hostile", list(named.values()), ids=list(named))


def with_value(document: Document, place: tuple[str, ...], value: str) -> str:
    """The JSON of a document in which one text is another one; the last part of the place may be a key itself."""
    whole = json.loads(document.to_json())
    inner = whole
    for part in place[:-1]:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    if place[-1] == "KEY":
        [key] = inner
        inner[value] = inner.pop(key)
    else:
        inner[place[-1]] = value
    return json.dumps(whole)


def refuses(document: Document, place: tuple[str, ...], value: str) -> None:
    type(document).from_json(document.to_json(), "the right one")
    with pytest.raises(DataError) as caught:
        type(document).from_json(with_value(document, place, value), "the document")
    text = str(caught.value)
    assert text.replace("\n", "").isprintable(), "it is shown on a terminal"
    assert len(text) < 1500


EXPECTED = ExpectedCheckpoint(id=ID, step=40, manifest_sha256="a" * 64, state_sha256="b" * 64)
ENTRY = Entry(
    id=ID,
    session=3,
    attempt=1,
    place=CheckpointPlace(kind="dataset", owner="tester", slug="a-slug", version=2),
    state=EntryState.SOUND,
    manifest_sha256="a" * 64,
    checked_at=START,
)
NOTE = VersionNote(session=3, attempt=1, fence=1, step=40, checkpoint=ID, manifest_sha256="a" * 64)
PUBLICATION = Publication(run="tamil", checkpoint=ID, files={"hf.model": PublishedFile(size_bytes=1, sha256="a" * 64)})
SHARD = Shard(
    name="part-001/english.tokens",
    num_tokens=1,
    sha256="a" * 64,
    index=ShardIndex(name="part-001/english.documents", num_documents=1, sha256="a" * 64),
)
STARTED = session_spec(2, start=EXPECTED, branch="rerun-s003a2")
JOB: KaggleJob = job_of(STARTED)

CHECKPOINTS: list[tuple[Document, tuple[str, ...]]] = [
    (manifest(40)[0], ("id",)),
    (manifest(40, parent=ID)[0], ("parent",)),
    (EXPECTED, ("id",)),
    (STARTED, ("start", "id")),
    (JOB, ("spec", "start", "id")),
    (report(1), ("head",)),
    (report(1, corrupt_checkpoint=ID), ("corrupt_checkpoint",)),
    (NOTE, ("checkpoint",)),
    (ENTRY, ("id",)),
    (Index(checkpoints={ID: ENTRY}), ("checkpoints", "KEY")),
    (PUBLICATION, ("checkpoint",)),
]
RUNS: list[tuple[Document, tuple[str, ...]]] = [
    (manifest(40)[0], ("run",)),
    (run_spec(), ("name",)),
    (STARTED, ("run",)),
    (JOB, ("spec", "run")),
    (report(1), ("run",)),
    (header(), ("name",)),
    (PUBLICATION, ("run",)),
]
FILES: list[tuple[Document, tuple[str, ...]]] = [
    (FileEntry(name="state.safetensors", size_bytes=1, sha256="a" * 64), ("name",)),
    (PartFile(name="english.tokens", num_bytes=1, sha256="a" * 64), ("name",)),
    (PUBLICATION, ("files", "KEY")),
]


def names(rows: list[tuple[Document, tuple[str, ...]]]) -> list[str]:
    return [f"{type(document).__name__}.{'.'.join(place)}" for document, place in rows]


@table(HOSTILE, OTHER_IDS)
@pytest.mark.parametrize(("document", "place"), CHECKPOINTS, ids=names(CHECKPOINTS))
def test_no_document_carries_a_checkpoints_id_that_is_none(document: Document, place: tuple[str, ...], hostile: str) -> None:
    refuses(document, place, hostile)


@table(HOSTILE, OTHER_RUNS)
@pytest.mark.parametrize(("document", "place"), RUNS, ids=names(RUNS))
def test_no_document_carries_a_runs_name_that_is_none(document: Document, place: tuple[str, ...], hostile: str) -> None:
    refuses(document, place, hostile)


@table(HOSTILE, OTHER_ATTEMPTS)
def test_no_index_has_an_attempt_of_another_name(hostile: str) -> None:
    refuses(Index(attempts={"s003a1": Known()}), ("attempts", "KEY"), hostile)


@table(HOSTILE)
@pytest.mark.parametrize(("document", "place"), FILES, ids=names(FILES))
def test_no_document_carries_a_file_name_that_is_a_path(document: Document, place: tuple[str, ...], hostile: str) -> None:
    refuses(document, place, hostile)


@table(HOSTILE, but=("folder",))
@pytest.mark.parametrize("place", [("name",), ("index", "name")])
def test_no_shard_lies_outside_its_folder(place: tuple[str, ...], hostile: str) -> None:
    refuses(SHARD, place, hostile)


@table(HOSTILE, OTHER_FOLDERS, but=("absolute",))
def test_data_lies_in_the_runs_folder_or_where_the_user_says(hostile: str, tmp_path: Path) -> None:
    refuses(DataRecords(records=(DATA,)), ("records", "0", "folder"), hostile)
    with pytest.raises(DataError, match="the data folder is invalid"):
        RunLayout(tmp_path).data_folder(hostile)


@table(HOSTILE)
def test_a_branch_is_a_plain_name(hostile: str) -> None:
    refuses(STARTED, ("branch",), hostile)


@table(HOSTILE, OTHER_IDS)
@pytest.mark.parametrize(
    "door",
    [
        DirectoryCheckpointStore.folder,
        DirectoryCheckpointStore.manifest,
        DirectoryCheckpointStore.verify,
        DirectoryCheckpointStore.verify_tensors,
        DirectoryCheckpointStore.stage,
        lambda store, name: store.staged_copy(name).__enter__(),
        DirectoryCheckpointStore.delete,
        lambda store, name: store.quarantine(name, "why"),
    ],
)
def test_a_store_opens_no_door_to_what_is_no_checkpoints_id(
    tmp_path: Path, door: Callable[[DirectoryCheckpointStore, str], object], hostile: str
) -> None:
    store = DirectoryCheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(CorruptCheckpointError, match="checkpoint's id is invalid") as caught:
        door(store, hostile)
    assert len(str(caught.value)) < 500
    assert list(tmp_path.iterdir()) == []


@table(HOSTILE, OTHER_IDS)
def test_what_is_no_checkpoints_id_is_nowhere_taken_for_one(hostile: str, tmp_path: Path) -> None:
    assert not is_checkpoint_id(hostile)
    assert attempt_of(hostile) is None
    for door in (check_checkpoint_id, lambda text: checkpoint_file_names(text, ("manifest.json",))):
        with pytest.raises(CorruptCheckpointError):
            door(hostile)
    recorded = checkpoint(40).evolve(id=hostile)
    with pytest.raises(CorruptCheckpointError):
        recorded.expected()
    with pytest.raises(CorruptCheckpointError):
        publication_folder(Simulation(tmp_path).ports, "tamil", recorded)
    with pytest.raises(UserError) as caught:
        resolve(hostile or "x", [ID], "checkpoint")
    assert len(str(caught.value)) < 500


@table(HOSTILE, OTHER_IDS)
def test_a_note_that_names_another_checkpoint_than_its_attempts_is_none(hostile: str) -> None:
    text = f"gemma-orch s003a1 fence 1 step 40 {hostile} {'a' * 64}"
    assert VersionNote.parse(text) is None
    false = misnamed(text)
    assert false is None or (false[0] == NOTE and false[1] == hostile)


def test_a_note_that_names_the_checkpoint_of_another_attempt_is_none() -> None:
    text = str(NOTE).replace(ID, "step-00000040-s009a1")
    assert VersionNote.parse(text) is None
    assert misnamed(text) == (NOTE, "step-00000040-s009a1")
    assert misnamed(str(NOTE)) is None


@table(HOSTILE, OTHER_ATTEMPTS)
def test_what_is_no_attempts_name_is_none(hostile: str) -> None:
    assert parse_attempt_name(hostile) is None
    assert parse_attempt_dataset_slug("tamil", f"gemma-orch-tamil-{hostile}") is None
    assert parse_attempt_kernel_slug("tamil", f"gemma-orch-tamil-{hostile}-k") is None


@table(HOSTILE, OTHER_RUNS)
def test_what_is_no_runs_name_has_no_folder(tmp_path: Path, hostile: str) -> None:
    for door in (HomeLayout(tmp_path).run, check_run_fits):
        with pytest.raises(UserError) as caught:
            door(hostile)
        assert len(str(caught.value)) < 500


@table(HOSTILE, OTHER_RUNS)
def test_what_is_no_runs_name_is_not_adopted(tmp_path: Path, hostile: str) -> None:
    run = Simulation(tmp_path)
    with pytest.raises(GemmaOrchError):
        adopt(FakeKaggle(ManualClock()), run.ports, hostile)  # type: ignore[arg-type]
    assert run.runs.names() == ()


@pytest.mark.parametrize("name", ["தமிழ்-00000.tokens", "Scots Gaelic-00000.tokens", "a", "a" * 255])
def test_a_plain_name_is_a_file_name_in_every_script(name: str) -> None:
    assert is_file_name(name)
    assert is_inner_path(f"part-001/{name}")
    assert not is_inner_path(f"part-001//{name}")


@pytest.mark.parametrize(
    "name",
    ["C:evil", "a:b", "a?", "a*", 'a"', "a|b", "<a>", "a.", "a ", "con", "NUL.txt", "com1", "LPT9 .tokens", "aux.x.y", "COM¹"],
)
def test_what_means_another_file_or_a_device_on_windows_is_no_file_name_there(name: str) -> None:
    assert not is_file_name(name, on_windows=True)
    assert is_file_name(name, on_windows=False)  # runs elsewhere may have such names already


@pytest.mark.parametrize("name", ["தமிழ்-00000.tokens", "console", "com", "com10", "nul-00000.tokens", "Scots Gaelic.x", "a.b"])
def test_any_other_file_name_is_one_on_windows_too(name: str) -> None:
    assert is_file_name(name, on_windows=True)


@pytest.mark.parametrize("folder", ["C:\\Users\\me\\data", "d:\\", "\\\\server\\share\\data", "/data/prepared", "data-2"])
def test_data_lies_at_an_absolute_path_of_any_system(folder: str) -> None:
    assert is_data_folder(folder)


@pytest.mark.parametrize("folder", ["C:data", "C:/data", "C:\\..\\/etc", "C:\\a\0b", "\\data", "..\\data", "C:"])
def test_what_another_system_could_take_for_a_path_elsewhere_is_no_folder_of_data(folder: str) -> None:
    assert not is_data_folder(folder)


@pytest.mark.parametrize(
    ("step", "session", "attempt"), [(1, 1, 1), (99_999_999, 999, 99), (10**8, 1000, 1), (10**12, 10**6, 100)]
)
def test_every_id_that_a_run_gives_is_one(step: int, session: int, attempt: int) -> None:
    made = checkpoint_id(step, session, attempt)
    assert is_checkpoint_id(made)
    assert parse_attempt_name(attempt_of(made) or "") == (session, attempt)


def test_a_ledger_with_an_id_that_an_earlier_version_believed_is_read_and_the_run_falls_back(tmp_path: Path) -> None:
    run = Simulation(tmp_path, lambda _session, _attempt: Scenario(save_after=(10, 20)))
    run.create(total_steps=100)
    run.run_until(lambda _tick: run.record.head is not None)
    good = run.record.head
    assert good is not None
    bad = good.evolve(id="../../x", step=50, parent=good.id)
    run.runs.acquire(RUN, run.ports.owner, run.clock.now(), 60.0)
    run.runs.apply(RUN, run.ports.owner, [PutCheckpoint(bad), SetHeader(run.record.header.evolve(head=bad.id))])
    run.run_until(lambda _tick: run.record.header.head != bad.id)
    assert run.record.header.head == good.id
    assert run.record.checkpoints[bad.id].state is CheckpointState.QUARANTINED
    assert any("checkpoint's id is invalid: '../../x'" in line for line in run.events())
