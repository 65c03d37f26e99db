"""A chain on Kaggle changes hands: a laptop begins it, jobs without memory bring it on, another laptop ends it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.publish.dataset import Publication
from orchestrator.wiring import wire
from state.kaggle.names import attempt_kernel_slug, weights_slug
from state.ledger import RunRecord
from state.session import AttemptState
from tests.kaggle_chain import RUN, KaggleRun, kill
from tests.kaggle_clients import USER
from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.settings import Settings
from tests.patience import PATIENCE_S

_STEPS, _STEPS_A_SESSION = 300, 100
_MOST_JOBS = 100
_TICKS_A_JOB = 6


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[KaggleEmulator]:
    settings = Settings(timescale=1.0, start_at=datetime.now(UTC), processing_s=0.5, queue_s=0.2)
    with KaggleEmulator(tmp_path, settings) as emulator:
        yield emulator
        assert emulator.errors == []
        assert [escape.target for escape in emulator.journal.escapes] == []
        assert emulator.leaks() == []
        assert emulator.sessions.max_live(f"gemma-orch-{RUN}-") <= 1


def machine(root: Path, emulator: KaggleEmulator) -> KaggleRun:
    return KaggleRun(root, emulator, total_steps=_STEPS, session_steps=_STEPS_A_SESSION)


def is_pushed(emulator: KaggleEmulator, session: int) -> bool:
    return any(known.slug == attempt_kernel_slug(RUN, session, 1) for known in emulator.sessions.all())


def job(root: Path, emulator: KaggleEmulator) -> RunRecord:
    """What the scheduled job does until session 2 is pushed, in a home that is empty before; return what its ledger says then."""
    empty = machine(root, emulator)
    empty.type("adopt", f"{USER}/{RUN}")
    for _ in range(_TICKS_A_JOB):
        if not is_pushed(emulator, 2):
            empty.type("tick")
    return empty.record()


def test_a_chain_that_changes_hands_equals_one_uninterrupted_local_run(tmp_path: Path, emulator: KaggleEmulator) -> None:
    first = machine(tmp_path / "first", emulator)
    first.prepare()
    first.type("start", "--config", str(first.straight_config))
    straight = first.digest("straight")
    controller = first.begin()
    session = first.session(attempt_kernel_slug(RUN, 1, 1))
    kill(controller)
    assert session.done.wait(PATIENCE_S)
    (tmp_path / "first").rename(tmp_path / "lost")  # with its ledger, its data and its config: the account is all there is

    for number in range(_MOST_JOBS):
        record = job(tmp_path / f"job-{number}", emulator)
        if is_pushed(emulator, 2):
            break
    assert [(attempt.session, attempt.attempt) for attempt in record.attempts] == [(1, 1), (2, 1)]
    assert record.attempts[0].state is AttemptState.DONE

    second = machine(tmp_path / "second", emulator)
    assert f"run {RUN} adopted: 2 attempts" in second.type("adopt", f"{USER}/{RUN}")
    second.type("start", "--name", RUN)
    assert second.digest(RUN) == straight
    assert second.record().head_step == _STEPS
    assert [attempt.session for attempt in second.record().attempts] == [1, 2, 3]
    assert "is up to date" in second.type("adopt", RUN)

    assert second.leaks() == []

    said = second.type("publish", RUN)
    assert "every byte read back" in said
    assert "is already published" in second.type("publish", RUN)
    publication = _publication(second)
    assert publication.state_sha256 == straight
    assert {"hf.model.safetensors", "gemma-pytorch.model.ckpt", "hf.tokenizer.json"} <= publication.files.keys()


def _publication(run: KaggleRun) -> Publication:
    """What the account says of the weights, each file of it whole."""
    dataset = next(known for known in run.emulator.datasets.all() if known.slug == weights_slug(RUN))
    contents = {file.name: file.path.read_bytes() for file in dataset.versions[-1].files()}
    publication = Publication.from_json(contents.pop("published.json"), "a test")
    assert {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} == {
        name: file.sha256 for name, file in publication.files.items()
    }
    assert wire(run.environment).runs.load(RUN).header.head == publication.checkpoint
    return publication
