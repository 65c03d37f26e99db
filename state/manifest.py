"""The checkpoint's manifest: a checkpoint exists when, and only when, its manifest does."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import Field

from state.document import Document, digest_of
from state.layout import BranchName, CheckpointId, RunName
from state.spec import ExpectedCheckpoint


class FileEntry(Document):
    """One file of a checkpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=150, description="flat: no folders")
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TensorEntry(Document):
    """One whole tensor of a state; the files may hold it in pieces."""

    name: str
    dtype: str = Field(description="as safetensors writes it, such as F32")
    shape: tuple[int, ...]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its bytes in row-major order")


class DataPosition(Document):
    """How much data has been read; a pure function of the step."""

    samples: int = Field(ge=0, description="sequences trained on since step 0")
    samples_by_language: dict[str, int] = Field(default_factory=dict)


_FIRST_POSITION_FIELDS = frozenset({"samples", "samples_by_language"})


class Environment(Document):
    """Hardware and software that computed a checkpoint; in an equal environment, training is equal bit for bit."""

    torch: str
    python: str
    device: str = Field(description="name of the CPU or GPU")
    threads: int
    compiled: bool
    code_sha256: str = Field(description="digest of the worker's and state's source")


class Manifest(Document):
    """Describes a checkpoint: its files, its place in the lineage, its digests. Written last."""

    schema_version: Literal[1] = 1
    id: CheckpointId
    run: RunName
    session: int
    attempt: int
    fence: int
    branch: BranchName | None
    step: int = Field(ge=1, description="steps trained when the snapshot was taken")
    parent: CheckpointId | None = Field(description="the checkpoint that it continues; none: the initial weights")
    created_at: datetime
    trajectory_sha256: str
    order_version: int = Field(default=1, description="version of the order in which data is read; older manifests lack it")
    data_sha256: str = Field(description="digest of the data version that the last step read")
    data_position: DataPosition
    next_loss: float = Field(description="loss of the next step, before its update: the canary of this checkpoint")
    train_s: float = Field(ge=0.0, description="seconds of this attempt's training up to this checkpoint")
    environment: Environment
    state_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(file.size_bytes for file in self.files)

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of its files; a reader opens no other."""
        return tuple(file.name for file in self.files)

    def expected(self, manifest_sha256: str) -> ExpectedCheckpoint:
        """Return the part of a session's spec that makes it start from this checkpoint."""
        return ExpectedCheckpoint(id=self.id, step=self.step, manifest_sha256=manifest_sha256, state_sha256=self.state_sha256)


def state_sha256(tensors: Iterable[TensorEntry], step: int, data_position: DataPosition) -> str:
    """Return the digest of a state: parameters, optimizer, step and data position.

    It covers whole tensors in name order, so it does not depend on how files or ranks cut them.
    """
    return digest_of(
        {
            "tensors": [
                [tensor.name, tensor.dtype, list(tensor.shape), tensor.sha256]
                for tensor in sorted(tensors, key=lambda tensor: tensor.name)
            ],
            "step": step,
            "data_position": data_position.digested_values(_FIRST_POSITION_FIELDS),
        }
    )


def first_difference(one: Manifest, other: Manifest) -> str | None:
    """Return the first difference between two states, in name order, or None when they are equal."""
    if one.state_sha256 == other.state_sha256:
        return None
    if one.step != other.step:
        return f"step: {one.step} and {other.step}"
    mine = {tensor.name: tensor for tensor in one.tensors}
    theirs = {tensor.name: tensor for tensor in other.tensors}
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            return f"tensor {name}"
    return "data position"
