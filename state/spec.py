"""The specs: of a run, as the user asks for it (`RunSpec`), and of a session, as the worker gets it (`SessionSpec`)."""

from __future__ import annotations

import itertools
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from state.architecture import Architecture, ModelSpec
from state.backend_settings import BACKEND_SETTINGS, KaggleSettings
from state.document import Document, digest_of
from state.layout import BranchName, CheckpointId, RunName
from state.mixture import DEFAULT_ALPHA, DEFAULT_MAX_EPOCHS, Mixing

ORDER_VERSION = 2
"""Version of the rule by which (seed, step) determines the sequences of a step."""


# fmt: off
# The fields that the first trajectory digests covered. Do not add later fields: see `Document.digested_values`.
_FIRST_ARCHITECTURE_FIELDS = frozenset(
    {
        "num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "sliding_window",
        "local_layers_per_global", "query_scale_dim", "rope_local_theta", "rope_global_theta", "rope_global_scaling",
        "rms_norm_eps", "max_position", "schema_version", "vocab_size",
    }
)
_FIRST_TRAINING_FIELDS = frozenset(
    {
        "seed", "batch_size", "micro_batch_size", "learning_rate", "warmup_steps", "schedule", "min_learning_rate", "beta1",
        "beta2", "eps", "weight_decay", "grad_clip", "dtype", "compile", "threads",
    }
)
# fmt: on


class DataSpec(Document):
    """The text to train on, its cut into sequences, and its mixture of languages."""

    corpus: tuple[str, ...] = Field(default=(), description="folders that hold a folder of text per language; none: the sample")
    tokenizer: str | None = Field(default=None, description="a SentencePiece model; none: the sample's")
    prepared: str | None = Field(default=None, description="a prepared data folder, instead of corpus and tokenizer")
    sequence_length: int = Field(default=64, ge=8, le=131_072, description="tokens per sequence")
    mixing: Mixing = Field(default="alpha", description="the rule for the mixture when no weights are given")
    alpha: float = Field(
        default=DEFAULT_ALPHA, ge=0.0, le=1.0, description="for alpha: shares are in proportion to tokens ** alpha"
    )
    max_epochs: float = Field(default=DEFAULT_MAX_EPOCHS, gt=0.0, description="for unimax: how often a text may be read")
    weights: dict[str, float] | None = Field(default=None, description="weight per language, instead of a rule")

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.prepared is not None and (self.corpus or self.tokenizer is not None):
            raise ValueError("prepared excludes corpus and tokenizer: leave out corpus and tokenizer, or prepared")
        if self.mixing == "unimax" and self.weights is not None:
            raise ValueError("weights exclude mixing = unimax: leave out weights, or mixing")
        if self.mixing == "unimax" and self.alpha != DEFAULT_ALPHA:
            raise ValueError("mixing = unimax has no alpha: leave out alpha, or mixing")
        if self.mixing != "unimax" and self.max_epochs != DEFAULT_MAX_EPOCHS:
            raise ValueError("max_epochs needs mixing = unimax: the other rules ignore it")
        return self


class TrainingSpec(Document):
    """How a step is computed; every field changes the trained weights.

    The default of a field that is added later must mean "as before the field existed". With any other default, every run in
    progress would refuse its own checkpoints.

    Source of the defaults: AdamW with betas 0.9/0.95, eps 1e-8, clip 1.0 and decay 0.1 on matrices only is the setting that
    public recipes of this size share (OLMo 2 1B, SmolLM2, TinyLlama).
    """

    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=8, ge=1, description="sequences per step")
    micro_batch_size: int | None = Field(default=None, ge=1, description="sequences computed at once; none: the whole batch")
    learning_rate: float = Field(default=3e-3, gt=0.0, description="peak learning rate")
    warmup_steps: int = Field(default=20, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    min_learning_rate: float = Field(default=0.0, ge=0.0, description="learning rate at the end of cosine")
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0, description="on matrices only: not on norms, not on the embedding")
    grad_clip: float = Field(default=1.0, gt=0.0, description="largest global gradient norm")
    dtype: Literal["float32"] = "float32"
    compile: bool = Field(default=False, description="compile each decoder layer with torch.compile")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: the number of cores of the machine that creates the run")

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainingSpec:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Retention(Document):
    """Which checkpoints are kept; at least two verified ones, for any numbers."""

    keep_last: int = Field(default=3, ge=2, description="how many of the newest to keep")
    keep_every: int = Field(default=0, ge=0, description="also keep those at steps divisible by this; 0: none")
    keep_session_starts: int = Field(default=3, ge=0, description="also keep the starts of this many last sessions, for rerun")


class SessionLimits(Document):
    """The limits of a session; no field changes the weights."""

    session_limit_s: float = Field(default=12 * 3600.0, gt=0.0, description="seconds after which the platform ends a session")
    session_steps: int | None = Field(default=None, ge=1, description="also end a session after this many steps")
    checkpoint_every_s: float = Field(default=600.0, gt=0.0, description="seconds between checkpoints")


class Reading(Document):
    """How a session reads its data; no field changes the batches."""

    scratch_dir: str | None = Field(default=None, description="a fast local folder for copies of the next blocks")
    scratch_bytes: int | None = Field(default=None, ge=1, description="most disk to use there; none: as much as needed")

    @model_validator(mode="after")
    def _room_needs_a_folder(self) -> Self:
        if self.scratch_bytes is not None and self.scratch_dir is None:
            raise ValueError("scratch_dir is missing: a size for scratch is given")
        return self


class RunSpec(Document):
    """One training goal, as the user asked for it."""

    schema_version: Literal[1] = 1
    name: RunName
    total_steps: int = Field(ge=1, le=10**12)
    backend: str = "local"
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    limits: SessionLimits = SessionLimits()
    reading: Reading = Reading()
    retention: Retention = Retention()
    kaggle: KaggleSettings = KaggleSettings()


class SpecChange(Document):
    """One difference between a run's spec and the requested one."""

    field: str
    old: Any
    new: Any
    refusal: str | None = Field(description="why the change is not allowed; none: it is allowed")

    def __str__(self) -> str:
        verdict = f"not allowed: {self.refusal}" if self.refusal else "allowed"
        return f"{self.field}: {self.old!r} -> {self.new!r} ({verdict})"


_ALWAYS_ALLOWED = ("backend", "limits", "reading", "retention", *BACKEND_SETTINGS)


def compare_specs(old: RunSpec, new: RunSpec, *, reached_step: int = 0) -> tuple[SpecChange, ...]:
    """Return the differences between two specs of a run, in field order.

    Args:
        old: The run's spec so far.
        new: The requested spec.
        reached_step: The head's step; `total_steps` cannot go below it.
    """
    before, after = _flatten(old), _flatten(new)
    changes = []
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field):
            changes.append(
                SpecChange(
                    field=field,
                    old=before.get(field),
                    new=after.get(field),
                    refusal=_refusal(field, old, new, reached_step),
                )
            )
    return tuple(changes)


def _refusal(field: str, old: RunSpec, new: RunSpec, reached_step: int) -> str | None:
    if field.partition(".")[0] in _ALWAYS_ALLOWED:
        return None
    if field == "total_steps":
        if old.training.schedule == "cosine":
            return "with the cosine schedule every learning rate depends on the last step, so the steps so far would be wrong"
        if new.total_steps < reached_step:
            return f"the run has already reached step {reached_step}"
        return None
    if field == "data.prepared" and None not in (old.data.prepared, new.data.prepared):
        return None  # only the folder moves; the controller checks that it holds the same data
    return "it would change weights that are already trained; start another run with --name"


def _flatten(spec: RunSpec) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[key] = value
    return flat


class ExpectedCheckpoint(Document):
    """The checkpoint that a session must start from, identified by its digests."""

    id: CheckpointId
    step: int = Field(ge=1)
    manifest_sha256: str
    state_sha256: str


class SessionData(Document):
    """One version of a run's data, which the run reads from some step on."""

    first_step: int = Field(ge=0, description="steps trained before it is first read; 0: from the beginning")
    data_dir: str
    data_sha256: str
    mixture: dict[str, float] = Field(description="weight per language, sum 1")


class SessionSpec(Document):
    """Everything that a worker needs for one session; with it, a session also runs by hand without a controller."""

    schema_version: Literal[2] = 2
    run: RunName
    session: int = Field(ge=1)
    attempt: int = Field(ge=1)
    fence: int = Field(ge=1)
    branch: BranchName | None = Field(default=None, description="name of the branch, if the result must not become the head")
    architecture: Architecture
    training: TrainingSpec
    sequence_length: int = Field(ge=1)
    data: tuple[SessionData, ...] = Field(min_length=1, description="the run's data versions, by first step")
    reading: Reading = Reading()
    checkpoints_dir: str
    cache_dir: str | None = Field(default=None, description="folder that keeps compiled kernels between sessions")
    start: ExpectedCheckpoint | None = Field(default=None, description="none: initialise the weights from the seed")
    total_steps: int = Field(ge=1)
    max_steps: int | None = Field(default=None, ge=1, description="end after this many steps of this session")
    limit_s: float = Field(gt=0.0, description="seconds from process start to process end")
    checkpoint_every_s: float = Field(gt=0.0)
    save_estimate_s: float | None = Field(default=None, description="seconds of the longest save in earlier sessions")
    retention: Retention = Retention()

    @field_validator("data")
    @classmethod
    def _versions_follow_each_other(cls, data: tuple[SessionData, ...]) -> tuple[SessionData, ...]:
        firsts = [version.first_step for version in data]
        if firsts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(firsts)):
            raise ValueError(
                f"the data versions begin at the steps {firsts}: the first must be 0, each later than the one before"
            )
        return data

    def data_until(self, step: int) -> tuple[SessionData, ...]:
        """Return the data versions that the first `step` steps read; for 0 steps, the first version."""
        return tuple(version for version in self.data if version.first_step == 0 or version.first_step < step)

    def trajectory_sha256(self, step: int) -> str:
        """Return the digest of everything that determines the weights at a step; a session refuses a checkpoint with another one.

        A data version that begins later is not part of it, so a version can be added without invalidating earlier checkpoints.
        """
        values: dict[str, Any] = {
            "architecture": self.architecture.digested_values(_FIRST_ARCHITECTURE_FIELDS),
            "training": self.training.digested_values(_FIRST_TRAINING_FIELDS),
            "sequence_length": self.sequence_length,
            "order": ORDER_VERSION,
            "data": [[version.first_step, version.data_sha256, version.mixture] for version in self.data_until(step)],
        }
        if self.training.schedule == "cosine":
            values["total_steps"] = self.total_steps
        return digest_of(values)
