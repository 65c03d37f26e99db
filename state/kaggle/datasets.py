"""Creates datasets and publishes versions, each once; a version counts only if its list of files is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from state.clock import Clock
from state.kaggle.api import KaggleApi
from state.kaggle.errors import CorruptUploadError, ProcessingFailedError, SlugTakenError
from state.kaggle.sending import LocalFile, Sending, SentMark, Uploads, patiently, wait_for

__all__ = ["LocalFile", "begin_version", "ensure_dataset", "publish_version", "published_version", "wait_until_ready"]

# Reads lag by minutes. A dataset that Kaggle has removed is never shown, although its name stays taken.
_UNSHOWN_LIMIT_S = 3600.0


def ensure_dataset(
    api: KaggleApi,
    slug: str,
    files: Sequence[LocalFile],
    *,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    settle_s: float = 600.0,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Create a private dataset of these files, unless a dataset with this name exists; do not wait until it is ready.

    `wait_until_ready` waits.

    Args:
        api: The account.
        slug: The dataset's slug.
        files: The files of its first version, in order.
        resume_dir: Folder that keeps the state of unfinished uploads.
        deadline_s: Monotonic seconds of the clock at which to give up.
        clock: Source of time and pauses.
        settle_s: Seconds by which reads may lag behind writes.
        on_bytes: Called with the number of bytes sent since the last call.

    Raises:
        AmbiguousError: it is unknown whether the dataset was created.
        TemporaryError: it could not be created before the deadline.
        SlugTakenError: a kernel or a model has the name, or a dataset that Kaggle does not show.
        UserError: Kaggle refuses the request.
    """
    taken = SentMark(resume_dir, slug, "the name is taken", clock)
    if patiently(lambda: api.dataset(slug), clock, deadline_s) is not None:
        taken.remove()
        return
    uploads = Uploads(api, files, resume_dir, deadline_s, clock, on_bytes)

    def send(tokens: Sequence[str]) -> None:
        try:
            api.create_dataset(slug, tokens)
            taken.remove()
        except SlugTakenError as error:
            if not error.may_be("dataset"):
                raise
            _check_it_comes(error, taken)  # an earlier request was carried out, or the read before was stale

    Sending(clock, deadline_s, settle_s, uploads, send, lambda: api.dataset(slug) is not None).do()


def _check_it_comes(error: SlugTakenError, taken: SentMark) -> None:
    """Check the time since a dataset's name was first found taken while Kaggle did not show the dataset.

    Raises:
        SlugTakenError: it is an hour or more.
    """
    if not taken.is_written():
        taken.write(is_accepted=False)
    elif taken.left_s(_UNSHOWN_LIMIT_S) <= 0:
        raise SlugTakenError(
            f"{error.what}; for an hour Kaggle has not shown that dataset",
            by=error.by,
            expected=error.expected,
            remedy="use another name: Kaggle keeps the names of datasets that it has removed. gemma-orch start uses the name of "
            "the run's next attempt; --name sets the run's own name",
        ) from error


def wait_until_ready(api: KaggleApi, slug: str, *, clock: Clock, processing_limit_s: float) -> None:
    """Wait until the first version of a dataset is ready.

    Raises:
        ProcessingFailedError: Kaggle failed to process it.
        TemporaryError: it is not ready after `processing_limit_s`.
    """

    def is_ready() -> bool | None:
        status = api.dataset_status(slug)
        if status == "FAILED":
            raise ProcessingFailedError(slug, None, remedy="delete the dataset, and create it again")
        return status == "READY" or None

    wait_for(is_ready, f"dataset {slug} is not READY", clock, processing_limit_s)


def begin_version(
    api: KaggleApi,
    slug: str,
    files: Sequence[LocalFile],
    notes: str,
    *,
    delete_old: bool,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    settle_s: float = 600.0,
    processing_limit_s: float = 3600.0,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Upload files and ask Kaggle to create a version of them; if the answer is lost, look for the version before asking again.

    Args:
        api: The account.
        slug: The dataset's slug.
        files: All files of the version, in order.
        notes: The version's notes; they are unique, so that the version is found if the answer is lost.
        delete_old: Whether Kaggle deletes older versions when this one is ready.
        resume_dir: Folder that keeps the state of unfinished uploads.
        deadline_s: Monotonic seconds of the clock at which to give up.
        clock: Source of time and pauses.
        settle_s: Seconds to look for the notes before sending again. Within that time a refusal is tried again, too: Kaggle
            refuses while another version is processed.
        processing_limit_s: Seconds during which an accepted version is not sent again, even if it is not listed.
        on_bytes: Called with the number of bytes sent since the last call.

    Raises:
        AmbiguousError: it is unknown whether the version was created.
        TemporaryError: it could not be created before the deadline; the next call resumes the uploads.
        DeniedError: these credentials may not create it.
        UserError: Kaggle refuses the request.
    """
    mark = SentMark(resume_dir, slug, notes, clock)
    if mark.is_accepted() and mark.left_s(processing_limit_s) > 0:
        return
    uploads = Uploads(api, files, resume_dir, deadline_s, clock, on_bytes)

    def send(tokens: Sequence[str]) -> None:
        api.create_version(slug, tokens, notes, delete_old=delete_old)

    Sending(clock, deadline_s, settle_s, uploads, send, lambda: _is_listed(api, slug, notes), mark).do()


def published_version(api: KaggleApi, slug: str, files: Sequence[LocalFile], notes: str) -> int | None:
    """Return the number of the ready version with these notes and exactly these files, or None if it is missing so far.

    Raises:
        TemporaryError: Kaggle did not answer.
        ProcessingFailedError: Kaggle failed to process the version.
        CorruptUploadError: the version exists with other files.
    """
    dataset = api.dataset(slug)
    if dataset is None:
        return None
    named = sorted((version for version in dataset.versions if version.notes == notes), key=lambda v: v.number, reverse=True)
    standing = [version.number for version in named if version.status.upper() != "FAILED"]
    if named and not standing:
        raise ProcessingFailedError(slug, named[0].number, remedy="publish it again")
    if not standing or not api.dataset_is_ready(slug):
        return None
    wanted = {file.name: file.size_bytes for file in files}
    differences = []
    for number in standing:
        found = api.dataset_files(slug, number)
        if found is not None and found != wanted:
            found = api.dataset_files(slug, number)  # ask twice: a single answer may be stale
        if found is None:
            return None
        if found == wanted:
            return number
        differences.append(_difference(found, wanted))
    raise CorruptUploadError(
        slug,
        standing[0],
        f"dataset {slug} version {standing[0]} does not have the files that were uploaded: {differences[0]}",
        remedy="publish it again; this version will not be used",
    )


def publish_version(
    api: KaggleApi,
    slug: str,
    files: Sequence[LocalFile],
    notes: str,
    *,
    delete_old: bool,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    processing_limit_s: float,
    settle_s: float = 600.0,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> int:
    """Publish a version, wait until it is ready with exactly these files, and return its number.

    After a failure, call it again with the same notes: it looks for the version before it creates another one.

    Args:
        api: The account.
        slug: The dataset's slug.
        files: All files of the version, in order.
        notes: The version's notes, which are unique.
        delete_old: Whether Kaggle deletes older versions when this one is ready.
        resume_dir: Folder that keeps the state of unfinished uploads.
        deadline_s: Monotonic seconds of the clock at which to give up uploading.
        clock: Source of time and pauses.
        processing_limit_s: Longest wait, after that, for Kaggle to process the version.
        settle_s: Seconds by which reads may lag behind writes.
        on_bytes: Called with the number of bytes sent since the last call.

    Raises:
        TemporaryError: the version is not ready (yet).
        CorruptUploadError: the version exists with other files.
        UserError: Kaggle refuses the request.
    """
    spoiled: set[int | None] = set()

    def look() -> int | None:
        try:
            return published_version(api, slug, files, notes)
        except (CorruptUploadError, ProcessingFailedError) as error:
            if error.version not in spoiled:
                raise
            return None

    mark = SentMark(resume_dir, slug, notes, clock)
    try:
        number = patiently(look, clock, deadline_s)
    except (CorruptUploadError, ProcessingFailedError) as error:  # an earlier call's version is bad: publish another one
        spoiled.add(error.version)
        mark.remove()
        number = None
    if number is not None:
        return number
    if spoiled or not patiently(lambda: _is_listed(api, slug, notes), clock, deadline_s):
        begin_version(
            api,
            slug,
            files,
            notes,
            delete_old=delete_old,
            resume_dir=resume_dir,
            deadline_s=deadline_s,
            clock=clock,
            settle_s=settle_s,
            processing_limit_s=processing_limit_s,
            on_bytes=on_bytes,
        )
    number = wait_for(look, f"a version of dataset {slug}, {notes!r}, is not ready", clock, processing_limit_s)
    mark.remove()
    return number


def _is_listed(api: KaggleApi, slug: str, notes: str) -> bool:
    dataset = api.dataset(slug)
    return dataset is not None and any(version.notes == notes for version in dataset.versions)


def _difference(found: dict[str, int], wanted: dict[str, int]) -> str:
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    both = sorted(found.keys() & wanted.keys())
    other = [f"{name} ({found[name]} bytes, not {wanted[name]})" for name in both if found[name] != wanted[name]]
    parts = (("missing", missing), ("not wanted", extra), ("of another size", other))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)
