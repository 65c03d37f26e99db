"""Documents and files for tests: whole ones from the few values that a test is about."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from state.architecture import ModelSpec, resolve_architecture
from state.files import sha256_of_file
from state.layout import checkpoint_id
from state.ledger import (
    AttemptRecord,
    CheckpointRecord,
    CheckpointState,
    DataRecord,
    RunHeader,
    RunRecord,
    RunWishes,
)
from state.manifest import DataPosition, Environment, FileEntry, Manifest, TensorEntry, state_sha256
from state.process import ProcessIdentity
from state.report import Outcome, Seconds, SessionReport
from state.session import AttemptState
from state.spec import ExpectedCheckpoint, RunSpec, SessionData, SessionSpec, TrainingSpec
from state.stores.checkpoint_store import CheckpointStore
from state.tensor_files import tensor_entries

START = datetime(2026, 1, 1, tzinfo=UTC)
RUN = "tamil"
DATA = DataRecord(sha256="d" * 64, vocab_size=300, tokens={"en": 1000}, mixture={"en": 1.0})
OWNER = ProcessIdentity(host="desk", pid=1, started="10")
RIVAL = ProcessIdentity(host="laptop", pid=2, started="20")


def after(seconds: float) -> datetime:
    """The moment so many seconds after the tests' first one."""
    return START + timedelta(seconds=seconds)


def run_spec(**values: Any) -> RunSpec:
    return RunSpec.model_validate({"name": RUN, "total_steps": 100, "backend": "simulated", **values})


def header(**values: Any) -> RunHeader:
    return RunHeader.model_validate({"name": RUN, "created_at": START, "resumed_at": START, "data": (DATA,), **values})


def attempt(session: int, number: int = 1, **values: Any) -> AttemptRecord:
    """An attempt of a run; it is done and has used its budget unless the values say otherwise."""
    return AttemptRecord.model_validate(
        {
            "session": session,
            "attempt": number,
            "fence": session,
            "backend": "simulated",
            "state": AttemptState.DONE,
            "start_checkpoint": None,
            "start_step": 0,
            "planned_at": START,
            "launched_at": START,
            "limit_s": 100.0,
            "outcome": Outcome.BUDGET,
            **values,
        }
    )


def failed(session: int, number: int, fence: int, **values: Any) -> AttemptRecord:
    """An attempt that ended without a new checkpoint."""
    return attempt(
        session,
        number,
        **{
            "fence": fence,
            "state": AttemptState.LOST,
            "outcome": Outcome.LOST,
            "reason": "killed",
            "ended_at": after(10 * fence),
            **values,
        },
    )


def checkpoint(step: int, session: int = 1, number: int = 1, **values: Any) -> CheckpointRecord:
    return CheckpointRecord.model_validate(
        {
            "id": checkpoint_id(step, session, number),
            "step": step,
            "parent": None,
            "session": session,
            "attempt": number,
            "fence": session,
            "branch": None,
            "state": CheckpointState.VERIFIED,
            "state_sha256": hashlib.sha256(str(step).encode()).hexdigest(),
            "manifest_sha256": "b" * 64,
            "total_bytes": 10,
            "created_at": START,
            "verified_at": START,
            "train_s": 1.0,
            **values,
        }
    )


def run_record(
    attempts: Iterable[AttemptRecord] = (),
    checkpoints: Iterable[CheckpointRecord] = (),
    *,
    spec: RunSpec | None = None,
    wishes: Mapping[str, Any] | None = None,
    **header_values: Any,
) -> RunRecord:
    """A run; its newest fence is that of its last attempt."""
    listed = tuple(attempts)
    newest = max((known.fence for known in listed), default=0)
    return RunRecord(
        header=header(**{"newest_fence": newest, **header_values}),
        wishes=RunWishes.model_validate({"spec": spec or run_spec(), **(wishes or {})}),
        attempts=listed,
        checkpoints={known.id: known for known in checkpoints},
    )


def session_spec(session: int = 1, number: int = 1, **values: Any) -> SessionSpec:
    return SessionSpec.model_validate(
        {
            "run": RUN,
            "session": session,
            "attempt": number,
            "fence": session,
            "architecture": resolve_architecture(ModelSpec(), 300),
            "training": TrainingSpec(),
            "sequence_length": 8,
            "data": (session_data(),),
            "checkpoints_dir": "checkpoints",
            "total_steps": 100,
            "limit_s": 100.0,
            "checkpoint_every_s": 10.0,
            **values,
        }
    )


def session_data(first_step: int = 0, **values: Any) -> SessionData:
    """A data version of a session; the first one unless the values say otherwise."""
    return SessionData.model_validate(
        {"first_step": first_step, "data_dir": "data", "data_sha256": DATA.sha256, "mixture": {"en": 1.0}, **values}
    )


def report(session: int, number: int = 1, **values: Any) -> SessionReport:
    return SessionReport.model_validate(
        {
            "run": RUN,
            "session": session,
            "attempt": number,
            "fence": session,
            "outcome": Outcome.BUDGET,
            "reason": "the time is used up",
            "start_step": 0,
            "end_step": 20,
            "saved_step": 20,
            "head": checkpoint_id(20, session, number),
            "started_at": START,
            "ended_at": after(50),
            "seconds": Seconds(),
            **values,
        }
    )


def safetensors(tensors: Mapping[str, tuple[str, list[int], bytes]], offsets: Mapping[str, list[int]] | None = None) -> bytes:
    """A safetensors file.

    Args:
        tensors: (dtype, shape, bytes) by name.
        offsets: Where this file's piece of each tensor lies in the whole one, as torch.distributed.checkpoint writes it.
    """
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    if offsets is not None:
        sharding = {name: {"saved_offsets": offset} for name, offset in offsets.items()}
        header["__metadata__"] = {"DCP_SHARDING_INFO": json.dumps(sharding), "format": "pt"}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def stage_checkpoint(
    store: CheckpointStore, step: int, *, session: int = 1, number: int = 1, **values: Any
) -> tuple[Path, Manifest]:
    """Stage a checkpoint with two small files, unless its `files` are given by name, and return its folder and manifest."""
    weight = hashlib.sha256(b"weight %d" % step + values.pop("content", b"")).digest()
    small = {
        "rank-0.safetensors": safetensors({"model.a": ("U8", [32], weight)}),
        "rank-1.safetensors": safetensors({"model.b": ("U8", [2, 2], b"abcd")}),
    }
    staged = store.stage(checkpoint_id(step, session, number))
    for name, content in values.pop("files", small).items():
        (staged / name).write_bytes(content)
    paths = sorted(staged.iterdir())
    tensors = tensor_entries(paths)
    files = tuple(FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path)) for path in paths)
    position = DataPosition(samples=step * 8)
    return staged, _manifest(step, session, number, position, tensors, files, **values)


def manifest(step: int, session: int = 1, number: int = 1, **values: Any) -> tuple[Manifest, str]:
    """A checkpoint's manifest that does not contradict itself, with one file of 10 bytes, and its sha256."""
    position = DataPosition(samples=step * 8, samples_by_language={"en": step * 8})
    file = FileEntry(name="state.safetensors", size_bytes=10, sha256=hashlib.sha256(bytes(10)).hexdigest())
    made = _manifest(step, session, number, position, (), (file,), **values)
    return made, hashlib.sha256(made.to_json()).hexdigest()


def _manifest(
    step: int,
    session: int,
    number: int,
    position: DataPosition,
    tensors: tuple[TensorEntry, ...],
    files: tuple[FileEntry, ...],
    **values: Any,
) -> Manifest:
    return Manifest.model_validate(
        {
            "id": checkpoint_id(step, session, number),
            "run": RUN,
            "session": session,
            "attempt": number,
            "fence": session,
            "branch": None,
            "step": step,
            "parent": None,
            "created_at": START,
            "trajectory_sha256": "t",
            "data_sha256": DATA.sha256,
            "data_position": position,
            "next_loss": 1.0,
            "train_s": 1.0,
            "environment": Environment(torch="2", python="3", device="cpu", threads=1, compiled=False, code_sha256=""),
            "state_sha256": state_sha256(tensors, step, position),
            "tensors": tensors,
            "files": files,
            **values,
        }
    )


def commit_checkpoint(store: CheckpointStore, step: int, **values: Any) -> Manifest:
    """Stage a checkpoint and commit it."""
    return store.commit(*stage_checkpoint(store, step, **values))


def expected(record: CheckpointRecord) -> ExpectedCheckpoint:
    return ExpectedCheckpoint(
        id=record.id, step=record.step, manifest_sha256=record.manifest_sha256, state_sha256=record.state_sha256
    )
