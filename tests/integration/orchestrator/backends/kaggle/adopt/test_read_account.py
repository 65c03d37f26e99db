"""A run is read from an account that an emulator plays, and written into a ledger that knew nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kaggle.adopt.read_account import Adopted, adopt, spec_in_script
from orchestrator.backends.kaggle.session.bundle import bundle
from orchestrator.backends.kaggle.session.control_dataset import ControlState, DataRecords
from orchestrator.ports import Ports
from orchestrator.wiring import backend_kind
from state.clock import ManualClock
from state.errors import DataError, LeaseHeldError, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.job import StopFlag
from state.kaggle.names import VersionNote, attempt_dataset_slug, attempt_kernel_slug, checkpoint_file_names, control_slug
from state.layout import HomeLayout
from state.ledger import CheckpointState, PutAttempt, RunHeader, RunRecord, RunWishes, StopWish
from state.process import identify
from state.session import AttemptState, RunState
from state.spec import ExpectedCheckpoint, RunSpec, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.stores.run_store import SqliteRunStore
from tests.factories import DATA, RIVAL, RUN, after, manifest, report, run_spec, session_spec
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator.faults import Fault, refused_reads
from tests.kaggle_jobs import job_of
from tests.repository import ROOT

_FOREVER = "import time\ntime.sleep(600)"


class Account:
    """An account that is filled by hand, and homes that adopt from it."""

    def __init__(self, sdk: Sdk, root: Path, kernel_slug: Callable[[str, int, int], str] = attempt_kernel_slug) -> None:
        self.sdk = sdk
        self._kernel_slug = kernel_slug
        self._root = root
        self._stores: list[SqliteRunStore] = []
        self.api = KaggleApi(Credentials("a test", user=USER, key=sdk.emulator.settings.key), clock=ManualClock())

    def control(self, spec: RunSpec | None = None, stop: StopFlag | None = None) -> None:
        wanted = spec or run_spec(backend="kaggle")
        files = {
            "run.json": wanted.to_json(),
            "data.json": DataRecords(records=(DATA,)).to_json(),
            "stop.json": (stop or StopFlag()).to_json(),
        }
        if self.api.dataset(control_slug(RUN)) is None:
            self.sdk.create_dataset(control_slug(RUN), files)
        else:
            self.sdk.new_version(control_slug(RUN), files)

    def plan(self, session: int, number: int = 1, *, start: int | None = None, **values: Any) -> SessionSpec:
        """Make an attempt's dataset; `start` is the step at which the session before it ended."""
        expected = None
        if start is not None:
            made, sha256 = manifest(start, session - 1)
            expected = ExpectedCheckpoint(id=made.id, step=start, manifest_sha256=sha256, state_sha256=made.state_sha256)
        spec = session_spec(session, number, start=expected, **values)
        self.sdk.create_dataset(attempt_dataset_slug(RUN, session, number), {"session.json": spec.to_json()})
        return spec

    def push(self, session: int, number: int = 1, *, source: str = "pass") -> None:
        slug = self._kernel_slug(RUN, session, number)
        assert self.sdk.push(slug, source).version_number == 1
        if source != _FOREVER:
            self.sdk.emulator.wait_for_session(slug)

    def commit(
        self,
        step: int,
        session: int,
        number: int = 1,
        *,
        files: Mapping[str, bytes] | None = None,
        over: bool = False,
        **values: Any,
    ) -> str:
        """Upload a checkpoint as a worker does, with the report when the session is over; return its id."""
        made, sha256 = manifest(step, session, number)
        flat = checkpoint_file_names(made.id, ("state.safetensors", "manifest.json"))
        content = files if files is not None else {flat["state.safetensors"]: bytes(10), flat["manifest.json"]: made.to_json()}
        said = {"report.json": report(session, number, head=made.id, saved_step=step).to_json()} if over else {}
        note = VersionNote(session=session, attempt=number, fence=session, step=step, checkpoint=made.id, manifest_sha256=sha256)
        self.sdk.new_version(attempt_dataset_slug(RUN, session, number), {**content, **said}, str(note), **values)
        return made.id

    def fill(self) -> None:
        """Two sessions: one that is over, and one that runs and has saved once."""
        self.control()
        self.plan(1)
        self.push(1)
        self.commit(10, 1)
        self.commit(20, 1, over=True)
        self.plan(2, start=20)
        self.push(2, source=_FOREVER)
        self.commit(30, 2)

    def home(self, name: str = "laptop") -> Ports:
        layout = HomeLayout(self._root / name)
        self._stores.append(SqliteRunStore(layout.ledger))
        return Ports(
            kind=backend_kind,
            runs=self._stores[-1],
            home=layout,
            clock=ManualClock(after(10**6)),
            owner=identify(os.getpid()),
            backend=lambda _name, _run: pytest.fail("no backend is needed"),
            checkpoints=lambda run: DirectoryCheckpointStore(layout.run(run).checkpoints),
            prepare=lambda *_arguments, **_options: pytest.fail("nothing is prepared"),
        )

    def adopt(self, ports: Ports, wanted: str = f"{USER}/{RUN}") -> Adopted:
        return adopt(self.api, ports, wanted)

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with connected(tmp_path, queue_s=0.0) as sdk:
        made = Account(sdk, tmp_path)
        yield made
        made.close()


def states(record: RunRecord) -> dict[str, str]:
    return {f"s{attempt.session:03d}a{attempt.attempt}": attempt.state.value for attempt in record.attempts}


def test_a_run_is_adopted_once_and_is_then_what_it_was(account: Account) -> None:
    account.fill()
    ports = account.home()
    adopted = account.adopt(ports)
    record = ports.runs.load(RUN)
    assert adopted == Adopted(RUN, 2, is_new=True, record=record)
    assert states(record) == {"s001a1": "done", "s002a1": "running"}
    assert record.attempts[-1].handle == "gemma-orch-tamil-s002a1-k/v1"
    assert (record.header.head, record.header.newest_fence) == ("step-00000030-s002a1", 2)
    assert (record.spec, record.header.data) == (run_spec(backend="kaggle"), (DATA,))
    assert record.checkpoints["step-00000030-s002a1"].parent == "step-00000020-s001a1"
    assert ports.runs.session_spec(RUN, 2, 1) == session_spec(2, start=_expected(20, 1))
    again = account.adopt(ports, RUN)
    assert (again.is_new, again.num_attempts) == (False, 0)
    assert ports.runs.load(RUN) == record
    assert ports.runs.lease(RUN) is None


def test_a_run_that_an_earlier_version_began_is_adopted_with_its_kernels_under_the_names_that_they_have(tmp_path: Path) -> None:
    with connected(tmp_path, queue_s=0.0, one_namespace=False) as sdk:
        account = Account(sdk, tmp_path, kernel_slug=attempt_dataset_slug)
        account.fill()
        record = account.adopt(account.home()).record
        assert states(record) == {"s001a1": "done", "s002a1": "running"}
        assert [attempt.handle for attempt in record.attempts] == ["gemma-orch-tamil-s001a1/v1", "gemma-orch-tamil-s002a1/v1"]
        account.close()


def test_a_kernel_that_no_list_shows_yet_is_looked_for_under_both_names(tmp_path: Path) -> None:
    with connected(tmp_path, queue_s=0.0, one_namespace=False) as sdk:
        account = Account(sdk, tmp_path, kernel_slug=attempt_dataset_slug)
        account.fill()
        sdk.emulator.faults.add(Fault("ListKernels", "rewrite", body={"kernels": []}))
        assert states(account.adopt(account.home()).record)["s002a1"] == "running"
        account.close()


def test_what_stands_in_the_control_dataset_is_known_to_stand(account: Account) -> None:
    account.fill()
    ports = account.home()
    account.adopt(ports)
    path = ports.home.run(RUN).root / "kaggle" / "control.json"
    state = ControlState.from_json(path.read_bytes(), "a test")
    assert state.stands is not None
    assert state.stop == StopFlag()


def test_a_home_that_others_went_on_without_catches_up(account: Account) -> None:
    account.fill()
    ports = account.home()
    account.adopt(ports)
    account.commit(40, 2, over=True)
    account.sdk.emulator.sessions.close()
    account.plan(3, start=40)
    later = account.adopt(ports)
    assert (later.num_attempts, later.is_new) == (1, False)
    assert states(later.record) == {"s001a1": "done", "s002a1": "done", "s003a1": "launching"}
    assert later.record.header.head == "step-00000040-s002a1"


def test_what_was_never_launched_here_and_runs_on_the_account_is_not_gone_on_beside(account: Account) -> None:
    account.control()
    account.plan(1)
    ports = account.home()
    adopted = account.adopt(ports).record
    planned = adopted.attempts[0].evolve(state=AttemptState.PLANNED)
    ports.runs.acquire(RUN, ports.owner, ports.clock.now(), 60)
    ports.runs.apply(RUN, ports.owner, [PutAttempt(planned)])
    ports.runs.apply(RUN, ports.owner, [PutAttempt(planned.evolve(state=AttemptState.DROPPED))])
    account.push(1)
    with pytest.raises(DataError, match=r"never launched on Kaggle, but the account has its kernel gemma-orch-tamil-s001a1-k"):
        account.adopt(ports)


def test_only_the_newest_of_old_versions_may_be_left(account: Account) -> None:
    account.control()
    spec = account.plan(1)
    account.push(1, source=bundle(job_of(spec), ROOT).replace("leave(run(JOB, CODE, os.environ))", ""))
    account.commit(10, 1)
    account.commit(20, 1, over=True, delete_old=True)
    ports = account.home()
    record = account.adopt(ports).record
    assert record.header.head == "step-00000020-s001a1"
    assert ports.runs.session_spec(RUN, 1, 1) == spec, "the kernel's source says what its session was told"


def test_a_checkpoint_that_only_the_kernels_output_has_is_found(account: Account) -> None:
    account.control()
    spec = account.plan(1)
    made, _ = manifest(20, 1)
    said = report(1, head=made.id)
    account.push(
        1,
        source=f"""
import pathlib
root = pathlib.Path("/kaggle/working") if pathlib.Path("/kaggle/working").is_dir() else pathlib.Path.cwd()
(root / "checkpoint").mkdir()
(root / "checkpoint/{made.id}.state.safetensors").write_bytes(bytes(10))
(root / "checkpoint/{made.id}.manifest.json").write_text({made.to_json().decode()!r})
(root / "checkpoint/notes.manifest.json").write_text("mine")
(root / "report.json").write_text({said.to_json().decode()!r})
(root / "session.json").write_text({spec.to_json().decode()!r})
""",
    )
    said_aloud: list[str] = []
    record = adopt(account.api, account.home(), RUN, say=said_aloud.append).record
    assert (states(record), record.header.head) == ({"s001a1": "done"}, made.id)
    assert any(text.startswith("'notes.manifest.json', output of") for text in said_aloud)


def test_a_version_whose_note_names_something_else_is_put_aside_and_not_read(account: Account) -> None:
    account.fill()
    note = f"gemma-orch s002a1 fence 2 step 40 ../x {'a' * 64}"
    account.sdk.new_version(attempt_dataset_slug(RUN, 2, 1), {"..x.manifest.json": b"{}"}, note)
    ports = account.home()
    record = account.adopt(ports).record
    assert record.header.head == "step-00000030-s002a1"
    assert not any(".." in known for known in record.checkpoints)
    assert any("'../x' in version" in event.text and "not a checkpoint" in event.text for event in ports.runs.events(RUN, 100))


def test_an_attempt_whose_dataset_was_deleted_keeps_its_name(account: Account) -> None:
    account.control()
    account.push(1)
    account.sdk.emulator.clock.advance(48 * 3600)
    account.plan(2, start=20)
    account.push(2)
    account.commit(40, 2, over=True)
    record = account.adopt(account.home()).record
    assert states(record) == {"s001a1": "lost", "s002a1": "done"}
    assert record.checkpoints["step-00000020-s001a1"].state is CheckpointState.PRUNED
    assert record.header.head == "step-00000040-s002a1"


@pytest.mark.parametrize("slug", [attempt_dataset_slug(RUN, 1, 1), control_slug(RUN)])
def test_a_dataset_that_kaggle_refuses_to_show_is_not_taken_for_deleted(account: Account, slug: str) -> None:
    """Its checkpoints were called pruned, and would have been deleted when it was shown again."""
    account.fill()
    faults = refused_reads(slug)
    account.sdk.emulator.faults.add(*faults)
    home = account.home()
    with pytest.raises(TemporaryError, match=f"lists the dataset {slug} and refuses to show it"):
        account.adopt(home)
    assert home.runs.names() == ()
    account.sdk.emulator.faults.remove(*faults)
    assert states(account.adopt(home).record) == {"s001a1": "done", "s002a1": "running"}


def test_an_attempt_that_another_controller_is_about_to_launch_is_waited_for_and_not_called_lost(account: Account) -> None:
    """Found by adopting beside a controller: the session was called lost, and the next one launched beside it."""
    account.control()
    account.plan(1)
    account.push(1)
    account.commit(20, 1, over=True)
    account.sdk.create_dataset(attempt_dataset_slug(RUN, 2, 1), {"session.json": session_spec(2, 1).to_json()}, ready=False)
    home = account.home()
    with pytest.raises(TemporaryError, match="about to launch session 2 attempt 1"):
        account.adopt(home)
    assert home.runs.names() == ()


def test_a_version_that_lost_a_file_is_no_checkpoint(account: Account) -> None:
    account.control()
    account.plan(1)
    account.push(1)
    account.commit(10, 1)
    made, _ = manifest(20, 1)
    account.commit(20, 1, files={f"{made.id}.manifest.json": made.to_json()}, over=True)
    ports = account.home()
    record = account.adopt(ports).record
    assert record.header.head == "step-00000010-s001a1"
    assert made.id not in record.checkpoints
    assert any("state.safetensors" in event.text for event in ports.runs.events(RUN, 20))


def test_a_manifest_that_is_not_the_notes_is_no_checkpoint(account: Account) -> None:
    account.control()
    account.plan(1)
    account.push(1)
    account.commit(10, 1)
    made, _ = manifest(20, 1)
    other, _ = manifest(20, 1, next_loss=2.0)
    files = {f"{made.id}.state.safetensors": bytes(10), f"{made.id}.manifest.json": other.to_json()}
    account.commit(20, 1, files=files, over=True)
    assert account.adopt(account.home()).record.header.head == "step-00000010-s001a1"


def test_an_attempt_that_no_list_shows_yet_is_asked_for_by_name(account: Account) -> None:
    account.fill()
    for route in ("ListDatasets", "ListKernels"):
        account.sdk.emulator.faults.add(Fault(route, "lag", seconds=10**6))
    record = account.adopt(account.home()).record
    assert states(record) == {"s001a1": "done", "s002a1": "running"}


def test_a_stop_that_was_asked_for_elsewhere_holds_here(account: Account) -> None:
    account.fill()
    account.control(stop=StopFlag(session=2, attempt=1))
    record = account.adopt(account.home()).record
    assert record.wishes.stop is StopWish.CHECKPOINT
    assert record.header.state is RunState.ACTIVE


def test_what_cannot_be_read_now_brings_nothing(account: Account) -> None:
    account.fill()
    account.sdk.emulator.faults.add(Fault("GetKernelSessionStatus", "status", status=500))
    ports = account.home()
    with pytest.raises(TemporaryError):
        account.adopt(ports)
    assert ports.runs.names() == ()
    account.sdk.emulator.faults.remove()
    assert account.adopt(ports).is_new


def test_a_run_that_a_controller_of_this_home_is_at_work_on_is_left_alone(account: Account) -> None:
    account.fill()
    ports = account.home()
    account.adopt(ports)
    ports.runs.acquire(RUN, RIVAL, ports.clock.now(), 60)
    with pytest.raises(LeaseHeldError):
        account.adopt(ports)


def test_a_run_of_another_name_is_not_taken_for_this_one(account: Account) -> None:
    account.fill()
    account.sdk.create_dataset("gemma-orch-tamil-two-control", {"run.json": b"{}"})
    account.sdk.create_dataset("gemma-orch-tamil-two-s009a1", {"session.json": b"{}"})
    assert set(states(account.adopt(account.home()).record)) == {"s001a1", "s002a1"}


def test_a_run_that_is_not_there_names_those_that_are(account: Account) -> None:
    account.control()
    with pytest.raises(UserError, match=r"there is no run 'tamul' on the account tester") as error:
        account.adopt(account.home(), "tamul")
    assert "tamil" in str(error.value)
    assert error.value.remedy == "did you mean 'tamil'?"


def test_a_run_of_another_account_is_refused(account: Account) -> None:
    with pytest.raises(UserError, match=r"credentials .* are those of 'tester'"):
        account.adopt(account.home(), f"somebody/{RUN}")


def test_a_catching_up_that_cannot_be_read_changes_nothing(account: Account) -> None:
    account.fill()
    ports = account.home()
    before = account.adopt(ports).record
    account.plan(3, start=40)
    account.sdk.emulator.faults.add(
        Fault("DownloadDataset", "status", status=500, match={"datasetSlug": attempt_dataset_slug(RUN, 3, 1)})
    )
    with pytest.raises(TemporaryError):
        account.adopt(ports)
    assert ports.runs.load(RUN) == before
    assert ports.runs.lease(RUN) is None


@pytest.mark.parametrize("script", [None, "", "print(1)", "JOB = (", "JOB = 'x'", "JOB = 7"])
def test_a_script_of_somebody_else_says_nothing(script: str | None) -> None:
    assert spec_in_script(script) is None


def test_a_run_whose_name_was_taken_meanwhile_is_not_mixed(account: Account) -> None:
    account.fill()
    ports = account.home()

    def rival(_text: str) -> None:
        now = ports.clock.now()
        ports.runs.create(RunHeader(name=RUN, created_at=now, resumed_at=now), RunWishes(spec=run_spec()))

    with pytest.raises(TemporaryError, match=r"adopt it again"):
        adopt(account.api, ports, RUN, say=rival)
    assert ports.runs.load(RUN).attempts == ()


def _expected(step: int, session: int) -> ExpectedCheckpoint:
    made, sha256 = manifest(step, session)
    return ExpectedCheckpoint(id=made.id, step=step, manifest_sha256=sha256, state_sha256=made.state_sha256)
