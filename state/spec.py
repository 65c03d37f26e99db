"""What the user asks for (`RunSpec`) and what a session is told (`SessionSpec`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from state.architecture import Architecture, ModelSpec
from state.document import Document, digest_of


class DataSpec(Document):
    """Which text is trained on, and how it is cut and mixed."""

    corpus: tuple[str, ...] = Field(default=(), description="folders with JSONL in a folder per language; none: the sample")
    tokenizer: str | None = Field(default=None, description="a SentencePiece model; none: the sample's")
    sequence_length: int = Field(default=64, ge=8, le=131_072, description="tokens a sequence")
    alpha: float = Field(default=0.7, ge=0.0, le=1.0, description="languages are mixed in proportion to tokens ** alpha")
    weights: dict[str, float] | None = Field(default=None, description="a weight per language, instead of alpha")


class TrainingSpec(Document):
    """How a step is computed; every field changes the weights that come out.

    Source of the defaults: AdamW with betas 0.9/0.95, eps 1e-8, clip 1.0 and decay 0.1 on matrices only is the setting that
    public recipes of this size share (OLMo 2 1B, SmolLM2, TinyLlama).
    """

    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=8, ge=1, description="sequences a step")
    micro_batch_size: int | None = Field(default=None, ge=1, description="sequences at once; none: the whole batch")
    learning_rate: float = Field(default=3e-3, gt=0.0, description="peak learning rate")
    warmup_steps: int = Field(default=20, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    min_learning_rate: float = Field(default=0.0, ge=0.0, description="where cosine ends")
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0, description="on matrices only: not on norms, not on the embedding")
    grad_clip: float = Field(default=1.0, gt=0.0, description="largest global gradient norm")
    dtype: Literal["float32"] = "float32"
    compile: bool = Field(default=False, description="compile each decoder layer with torch.compile")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: fixed to this machine's cores when the run is made")

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainingSpec:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Retention(Document):
    """Which checkpoints are kept; never fewer than two verified ones, whatever the numbers say."""

    keep_last: int = Field(default=3, ge=2, description="the newest ones")
    keep_every: int = Field(default=0, ge=0, description="also those at steps divisible by this; 0: none")
    keep_session_starts: int = Field(default=3, ge=0, description="also where the last sessions started, for rerun")


class SessionLimits(Document):
    """How long a session may be; none of it changes the weights."""

    session_limit_s: float = Field(default=12 * 3600.0, gt=0.0, description="seconds that the platform gives a session")
    session_steps: int | None = Field(default=None, ge=1, description="also end a session after this many steps")
    checkpoint_every_s: float = Field(default=600.0, gt=0.0, description="seconds between checkpoints")


class RunSpec(Document):
    """One training goal, as the user asked for it."""

    schema_version: Literal[1] = 1
    name: str
    total_steps: int = Field(ge=1, le=10**12)
    backend: str = "local"
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    limits: SessionLimits = SessionLimits()
    retention: Retention = Retention()


class SpecChange(Document):
    """One difference between a run's spec and what is asked for now."""

    field: str
    old: Any
    new: Any
    refusal: str | None = Field(description="why it is not allowed; none when it is")

    def __str__(self) -> str:
        verdict = f"not allowed: {self.refusal}" if self.refusal else "allowed"
        return f"{self.field}: {self.old!r} -> {self.new!r} ({verdict})"


_ALWAYS_ALLOWED = ("backend", "limits", "retention")


def compare_specs(old: RunSpec, new: RunSpec, *, reached_step: int = 0) -> tuple[SpecChange, ...]:
    """Return the differences between an old spec and a new one of the same run, in field order.

    Args:
        old: What the run has been doing.
        new: What is asked for.
        reached_step: The head checkpoint's step: `total_steps` cannot go below it.
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
            return "the cosine schedule knows its end, so every step so far would have had another learning rate"
        if new.total_steps < reached_step:
            return f"the run has reached step {reached_step} already"
        return None
    return "it would change weights that are trained already; start another run with --name"


def _flatten(spec: RunSpec) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[key] = value
    return flat


class ExpectedCheckpoint(Document):
    """The checkpoint that a session must start from: it may start from these bytes only."""

    id: str
    step: int = Field(ge=1)
    manifest_sha256: str
    state_sha256: str


class SessionSpec(Document):
    """All that a worker needs to know; with it, a session runs by hand with no controller at all."""

    schema_version: Literal[1] = 1
    run: str
    session: int = Field(ge=1)
    attempt: int = Field(ge=1)
    fence: int = Field(ge=1)
    branch: str | None = Field(default=None, description="set when the result must not become the head")
    architecture: Architecture
    training: TrainingSpec
    sequence_length: int = Field(ge=1)
    mixture: dict[str, float] = Field(description="weight per language, sum 1")
    data_dir: str
    data_sha256: str
    checkpoints_dir: str
    cache_dir: str | None = Field(default=None, description="where compiled kernels are kept between sessions")
    start: ExpectedCheckpoint | None = Field(default=None, description="none: initialise from the seed")
    total_steps: int = Field(ge=1)
    max_steps: int | None = Field(default=None, ge=1, description="end after this many steps of this session")
    limit_s: float = Field(gt=0.0, description="seconds from process start to process end")
    checkpoint_every_s: float = Field(gt=0.0)
    save_estimate_s: float | None = Field(default=None, description="the longest save of earlier sessions")
    retention: Retention = Retention()

    def trajectory_sha256(self) -> str:
        """Return the digest of all that determines the weights; a checkpoint of another trajectory is refused."""
        values: dict[str, Any] = {
            "architecture": self.architecture.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "sequence_length": self.sequence_length,
            "mixture": self.mixture,
            "data_sha256": self.data_sha256,
        }
        if self.training.schedule == "cosine":
            values["total_steps"] = self.total_steps
        return digest_of(values)
