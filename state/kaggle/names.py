"""Every name on the account, in one place; each is equal to its slugified title, else Kaggle wedges what it names.

An account has one namespace: a kernel cannot have the slug of a dataset, and of a model the same is assumed. So every thing
has a name that no other thing of any kind and of any run can have: its last words say what it is, and those before them are
the run's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from state.document import Document
from state.errors import UserError
from state.layout import (
    CheckpointId,
    attempt_name,
    check_checkpoint_id,
    check_run_name,
    checkpoint_id,
    parse_attempt_name,
)

LONGEST_SLUG = 50
PREFIX = "gemma-orch"
STOP_FLAG_NAME = "stop.json"
"""File of the control dataset with the StopFlag."""
OUTPUT_FOLDER = "checkpoint"
"""Folder of a kernel's output with the last checkpoint of a session that could not upload it."""

CANARY_SLUG = f"{PREFIX}-canary"
"""The dataset that `doctor` writes to."""
FACTS_KERNEL = f"{PREFIX}-canary-facts"
"""The kernel that says what a session is like."""
LIMIT_KERNEL = f"{PREFIX}-canary-limit"
"""The kernel that stays until its limit."""

_LONGEST_ATTEMPT = len("-s999a99")
_LONGEST_RUN = LONGEST_SLUG - len(PREFIX) - 1 - _LONGEST_ATTEMPT
_KERNEL_ENDING = "-k"
_LONGEST_RUN_WITH_ENDING = _LONGEST_RUN - len(_KERNEL_ENDING)
_HANDLE = re.compile(r"(?P<slug>.+)/v(?P<version>\d+)")
_NOTE = re.compile(
    r"gemma-orch (?P<attempt>s[0-9]+a[0-9]+) fence (?P<fence>[0-9]{1,18}) step (?P<step>[0-9]{1,18}) "
    r"(?P<checkpoint>\S+) (?P<sha>[0-9a-f]{64})"
)


def slugify(title: str) -> str:
    """Return the slug that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def check_run_fits(run: str) -> None:
    """Check that every name of a run fits into Kaggle's limit.

    Raises:
        UserError: the run's name is too long, or its slug would be another one.
    """
    check_run_name(run)
    if len(run) > _LONGEST_RUN or slugify(run) != run:
        raise UserError(
            f"run {run!r} cannot have kernels on Kaggle: their names would be too long, or not their own slugs",
            expected=f"at most {_LONGEST_RUN} lower-case letters, digits and single hyphens",
            remedy="choose a shorter --name",
        )


def attempt_dataset_slug(run: str, session: int, attempt: int) -> str:
    """Return the slug of the dataset of an attempt's checkpoints, such as `gemma-orch-my-run-s003a1`."""
    return f"{PREFIX}-{run}-{attempt_name(session, attempt)}"


def attempt_kernel_slug(run: str, session: int, attempt: int) -> str:
    """Return the slug of an attempt's kernel, such as `gemma-orch-my-run-s003a1-k`.

    Where the run's name leaves no room for that, it ends as `-k003a1`.
    """
    if len(run) <= _LONGEST_RUN_WITH_ENDING:
        return attempt_dataset_slug(run, session, attempt) + _KERNEL_ENDING
    return f"{PREFIX}-{run}-k{attempt_name(session, attempt)[1:]}"


def parse_attempt_dataset_slug(run: str, slug: str) -> tuple[int, int] | None:
    """Return (session, attempt) when the slug is that of the dataset of an attempt of the run, else None."""
    prefix = f"{PREFIX}-{run}-"
    numbers = parse_attempt_name(slug.removeprefix(prefix)) if slug.startswith(prefix) else None
    return numbers if numbers is not None and attempt_dataset_slug(run, *numbers) == slug else None


def parse_attempt_kernel_slug(run: str, slug: str) -> tuple[int, int] | None:
    """Return (session, attempt) when the slug is one that the kernel of an attempt of the run may have, else None."""
    prefix = f"{PREFIX}-{run}-"
    name = re.sub(r"^k(?=\d)", "s", slug.removeprefix(prefix).removesuffix(_KERNEL_ENDING))
    numbers = parse_attempt_name(name) if slug.startswith(prefix) else None
    return numbers if numbers is not None and slug in _kernel_slugs(run, *numbers) else None


def _kernel_slugs(run: str, session: int, attempt: int) -> tuple[str, str]:
    """Return the slug of an attempt's kernel, and the one that earlier versions gave it: that of its dataset."""
    return attempt_kernel_slug(run, session, attempt), attempt_dataset_slug(run, session, attempt)


@dataclass(frozen=True)
class PushedKernel:
    """A version of a kernel on the account."""

    slug: str
    version: int = 1

    def __str__(self) -> str:
        return f"{self.slug}/v{self.version}"


def pushed_kernels(run: str, session: int, attempt: int, handle: str | None) -> tuple[PushedKernel, ...]:
    """Return what an attempt's kernel may be, the likeliest first: what its handle says, where there is one.

    Where the answer to a push was lost there is none. The kernel may then be one of an earlier gemma-orch's, under the name
    that it had there.
    """
    said = _HANDLE.fullmatch(handle or "")
    if said is not None:
        return (PushedKernel(said["slug"], int(said["version"])),)
    return tuple(PushedKernel(slug) for slug in _kernel_slugs(run, session, attempt))


def control_slug(run: str) -> str:
    """Return the slug of the dataset through which a run is told to stop, and adopted."""
    return f"{PREFIX}-{run}-control"


def weights_slug(run: str) -> str:
    """Return the slug of the dataset that a run's weights are published in, unless the user names another one."""
    return f"{PREFIX}-{run}-weights"


def model_slug(run: str) -> str:
    """Return the slug of the Kaggle model that a run's weights are put into as well."""
    return f"{PREFIX}-{run}-model"


def data_slug(data_sha256: str, part: int) -> str:
    """Return the slug of the dataset of one part of prepared data; part 0 has the manifest and the tokenizer."""
    return f"{PREFIX}-data-{data_sha256[:16]}-p{part:02d}"


class NameKind(StrEnum):
    """What a name is the name of."""

    ATTEMPT_DATASET = "the dataset of an attempt"
    ATTEMPT_KERNEL = "the kernel of an attempt"
    CONTROL = "the control dataset of a run"
    WEIGHTS = "the dataset of a run's weights"
    MODEL = "the model of a run's weights"
    DATA = "a dataset of prepared data"
    CANARY = "what gemma-orch doctor makes"


_KINDS = (
    (NameKind.ATTEMPT_DATASET, re.compile(r".+-s\d{3,}a\d+")),
    (NameKind.ATTEMPT_KERNEL, re.compile(r".+-(?:s\d{3,}a\d+-k|k\d{3,}a\d+)")),
    (NameKind.CONTROL, re.compile(r".+-control")),
    (NameKind.WEIGHTS, re.compile(r".+-weights")),
    (NameKind.MODEL, re.compile(r".+-model")),
    (NameKind.DATA, re.compile(r"data-[0-9a-f]{16}-p\d{2,}")),
    (NameKind.CANARY, re.compile(r"canary(?:-facts|-limit)?")),
)
"""What follows the prefix; a name is of one kind at most, whatever the run is called."""


def kind_of(slug: str) -> NameKind | None:
    """Return what a slug names for gemma-orch, or None when it is none of its names."""
    prefix = f"{PREFIX}-"
    rest = slug.removeprefix(prefix) if slug.startswith(prefix) else ""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(rest)), None)


class VersionNote(Document):
    """What the notes of a dataset version say, so that one look at a dataset tells what each version holds."""

    session: int
    attempt: int
    fence: int
    step: int
    checkpoint: CheckpointId
    manifest_sha256: str

    def __str__(self) -> str:
        name = attempt_name(self.session, self.attempt)
        return f"gemma-orch {name} fence {self.fence} step {self.step} {self.checkpoint} {self.manifest_sha256}"

    @classmethod
    def parse(cls, text: str) -> VersionNote | None:
        """Return the note that a text is, or None when it is another text, or names a checkpoint that its attempt cannot save."""
        note, named = _read(text) or (None, "")
        return note if note is not None and note.checkpoint == named else None


def misnamed(text: str) -> tuple[VersionNote, str] | None:
    """Return a note that names another checkpoint than its attempt saves at its step: as it should be, and what it names."""
    note, named = _read(text) or (None, "")
    return (note, named) if note is not None and note.checkpoint != named else None


def _read(text: str) -> tuple[VersionNote, str] | None:
    """Return the note that a text's numbers make, and the checkpoint that it names."""
    match = _NOTE.fullmatch(text.strip())
    numbers = parse_attempt_name(match["attempt"]) if match else None
    if match is None or numbers is None:
        return None
    step = int(match["step"])
    note = VersionNote(
        session=numbers[0],
        attempt=numbers[1],
        fence=int(match["fence"]),
        step=step,
        checkpoint=checkpoint_id(step, *numbers),
        manifest_sha256=match["sha"],
    )
    return note, match["checkpoint"]


def checkpoint_file_names(checkpoint_id: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return, by a checkpoint's own file names, those that they have in a dataset: flat, and unique over all checkpoints.

    Raises:
        CorruptCheckpointError: it is no checkpoint's id.
    """
    check_checkpoint_id(checkpoint_id)
    return {name: f"{checkpoint_id}.{name}" for name in names}
