"""Prepares an attempt on the account and pushes its kernel."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.checkpoints.promote import Promotion
from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.limits import session_timeout_s
from orchestrator.backends.kaggle.poll import Looks
from orchestrator.backends.kaggle.session.bundle import bundle
from orchestrator.backends.kaggle.session.control_dataset import LOOKS_A_POLL, Control
from orchestrator.backends.kaggle.session.inputs import KernelInputs
from orchestrator.backends.kaggle.session.quota import Admission
from orchestrator.backends.kaggle.session.storage_budget import SPEC_VERSION, StoragePlan, storage_plan
from orchestrator.backends.kaggle.sightings import Seen
from orchestrator.backends.kaggle.transfer import sending
from state import crash_points, files
from state.backend_settings import MACHINE_SHAPES
from state.errors import AmbiguousError, DataError, GemmaOrchError, NotLaunchedError, TemporaryError, UserError
from state.kaggle.errors import InvalidSourcesError, SlugTakenError
from state.kaggle.job import KaggleJob
from state.kaggle.names import PushedKernel, attempt_dataset_slug, attempt_kernel_slug, check_run_fits, control_slug
from state.kaggle.records import KernelPush
from state.layout import SPEC_NAME, AttemptLayout, attempt_name
from state.spec import SessionSpec

_BYTES_PER_NUMBER = 12  # a weight and its two moments, in float32


class Pushing:
    """Prepares the attempts of one run, and pushes their kernels.

    Args:
        context: The run.
        checkpoints: The run's checkpoint store.
        looks: Polls the run's attempts.
        control: The run's control dataset.
        inputs: The code and data for its kernels.
    """

    def __init__(
        self,
        context: KaggleContext,
        checkpoints: KaggleCheckpoints,
        looks: Looks,
        control: Control,
        inputs: KernelInputs,
    ) -> None:
        self.admission = Admission(context)
        """Whether Kaggle accepts a session now; remembers refusals."""
        self._context = context
        self._api = context.api
        self._clock = context.clock
        self._settings = context.settings
        self._checkpoints = checkpoints
        self._looks = looks
        self._control = control
        self._inputs = inputs
        self._promotion = Promotion(checkpoints)
        self._ready: set[str] = set()
        self._waiting: dict[str, tuple[datetime, str]] = {}

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Prepare a push (data, control dataset, the attempt's dataset, quota); return the reason to wait, if any.

        Raises:
            UserError: the data is not on the account, or the account has another run of this name.
            TemporaryError: Kaggle does not answer, or refuses a call now.
        """
        check_run_fits(spec.run)
        now, name = self._clock.now(), attempt_name(spec.session, spec.attempt)
        if (refusal := self.admission.refusal(now)) is not None:
            return refusal
        if name in self._waiting and now < self._waiting[name][0]:
            return self._waiting[name][1]
        again_at = now + timedelta(seconds=self._settings.poll_every_s / LOOKS_A_POLL)
        try:
            reason = self._unready(spec, now)
        except TemporaryError as error:
            self._waiting[name] = (again_at, error.what)
            raise
        if reason is not None:
            self._waiting[name] = (again_at, reason)
        return reason

    def launch(self, spec: SessionSpec) -> str:
        """Push an attempt's kernel, once; return the handle: kernel and version.

        Raises:
            AmbiguousError: the kernel exists already, or may exist: the next poll tells.
            NotLaunchedError: the kernel certainly was not pushed; a later try may succeed.
            UserError: Kaggle refuses it until the user changes something.
        """
        slug = attempt_kernel_slug(spec.run, spec.session, spec.attempt)
        try:
            if self._api().kernel(slug) is not None:
                raise AmbiguousError(f"the kernel {slug} is already on the account")
            push = self._push(spec, slug)
        except AmbiguousError:
            raise
        except TemporaryError as error:
            raise NotLaunchedError(f"{slug} is not pushed: {error.what}") from error
        self._looks.put(spec.session, spec.attempt, Seen())
        try:
            version = self._api().push_kernel(push)
        except (AmbiguousError, SlugTakenError):  # a kernel that has the name may not be ours: delete nothing
            raise
        except UserError as error:
            self._undo(slug, is_there=isinstance(error, InvalidSourcesError))
            raise
        except TemporaryError as error:
            raise self.admission.not_now(error) from error
        crash_points.done("launch", slug)
        return str(PushedKernel(slug, version))

    def _unready(self, spec: SessionSpec, now: datetime) -> str | None:
        for data in spec.data:
            if (reason := self._inputs.data.unready(data)) is not None:
                return reason
        # All three are started before the first wait, because Kaggle processes them in parallel.
        reasons = [
            self._unready_dataset(spec),
            self._control.make_ready(),
            self._promotion.unready(spec.start.id) if spec.start is not None else None,
        ]
        if waiting := [reason for reason in reasons if reason is not None]:
            return waiting[0]
        quota = self.admission.quota(now)
        return None if quota.available else quota.reason

    def _unready_dataset(self, spec: SessionSpec) -> str | None:
        """Create the attempt's dataset with its spec, unless it exists; return the reason to wait, if any."""
        from state.kaggle.datasets import LocalFile, ensure_dataset

        slug = attempt_dataset_slug(spec.run, spec.session, spec.attempt)
        if slug in self._ready:
            return None
        folder, content = self._context.layout.attempt(spec.session, spec.attempt), spec.to_json()
        info = self._api().dataset(slug)
        if info is None:
            files.make_folder(folder.root)
            if not folder.spec.exists() or folder.spec.read_bytes() != content:
                files.write_atomically(folder.spec, content)
            local = (LocalFile(path=folder.spec, name=SPEC_NAME, size_bytes=len(content)),)
            ensure_dataset(self._api(), slug, local, **sending(self._context, folder.root))
            return f"the dataset {slug} to be processed by Kaggle"
        if info.current_version is None or not self._api().dataset_is_ready(slug):
            return f"the dataset {slug} to be processed by Kaggle"
        if info.current_version == SPEC_VERSION:
            self._check_it_is_of(slug, folder, spec)
        self._ready.add(slug)
        return None

    def _check_it_is_of(self, slug: str, folder: AttemptLayout, spec: SessionSpec) -> None:
        """Check that the dataset with the attempt's name holds the attempt's spec: two homes may have runs of one name.

        Raises:
            UserError: it is of another run.
            TemporaryError: its files cannot be listed yet.
        """
        listed = self._api().dataset_files(slug, SPEC_VERSION)
        if listed is None:
            raise TemporaryError(f"Kaggle does not list the files of the dataset {slug} yet")
        there = None
        if SPEC_NAME in listed:
            files.make_folder(folder.root)
            with files.temporary_file(folder.spec) as fetched:
                self._api().download(slug, SPEC_VERSION, SPEC_NAME, fetched)
                there = fetched.read_bytes()
        if there is None or not _is_spec(there, spec):
            raise UserError(
                f"the account already has a dataset {slug}, of another run named {self._context.run}",
                remedy=f"gemma-orch adopt {self._context.run} continues that run; or begin this one with another --name",
            )

    def _push(self, spec: SessionSpec, slug: str) -> KernelPush:
        place = self._checkpoints.place(spec.start.id) if spec.start is not None else None
        if spec.start is not None and place is None:
            raise TemporaryError(f"checkpoint {spec.start.id}, from which {slug} starts, is not on the account yet")
        settings, storage = self._settings, self._storage(spec)
        job = KaggleJob(
            spec=spec,
            owner=self._context.owner,
            accelerator=settings.accelerator,
            start=place,
            dataset=attempt_dataset_slug(spec.run, spec.session, spec.attempt),
            control=control_slug(spec.run),
            upload_every_s=max(settings.upload_every_s, spec.limit_s / storage.most_uploads),
            stop_poll_every_s=settings.stop_poll_every_s,
            settle_s=settings.settle_s,
            processing_limit_s=settings.processing_limit_s,
            most_versions=storage.most_versions,
            token_dataset=settings.token_dataset,
        )
        sources = [f"{self._context.owner}/{source}" for data in spec.data for source in self._inputs.data.of(data)]
        sources += [f"{place.owner}/{place.slug}"] if place is not None and place.kind == "dataset" else []
        sources += [settings.token_dataset] if settings.token_dataset is not None else []
        return KernelPush(
            slug=slug,
            source=bundle(job, self._inputs.code),
            machine_shape=MACHINE_SHAPES[settings.accelerator],
            internet=settings.internet,
            timeout_s=session_timeout_s(spec.limit_s),
            dataset_sources=tuple(dict.fromkeys(sources)),
            kernel_sources=(f"{place.owner}/{place.slug}",) if place is not None and place.kind == "output" else (),
        )

    def _storage(self, spec: SessionSpec) -> StoragePlan:
        if spec.start is not None:
            checkpoint_bytes = self._checkpoints.manifest(spec.start.id)[0].total_bytes
        else:
            checkpoint_bytes = _BYTES_PER_NUMBER * spec.architecture.num_parameters()
        return storage_plan(
            checkpoint_bytes=checkpoint_bytes,
            stored_bytes=self._checkpoints.stored_bytes,
            budget_bytes=int(self._settings.storage_quota_bytes * self._settings.storage_share),
            uploads=1 + math.ceil(spec.limit_s / self._settings.upload_every_s),
            kept_attempts=spec.retention.keep_session_starts,
            num_elsewhere=self._checkpoints.num_sound,
        )

    def _undo(self, slug: str, *, is_there: bool) -> None:
        """Delete the kernel of a refused push, if Kaggle started it all the same: it would run without its inputs.

        Raises:
            AmbiguousError: the kernel may still exist.
        """
        try:
            if is_there or self._api().kernel(slug) is not None:
                self._api().delete_kernel(slug)
        except GemmaOrchError as error:
            raise AmbiguousError(
                f"the kernel {slug} was pushed without its inputs and may still be there: {error.what}"
            ) from error


def _is_spec(text: bytes, spec: SessionSpec) -> bool:
    """Return whether a text is a session's spec. They are compared as values: an earlier version has written fewer fields."""
    try:
        return SessionSpec.from_json(text, SPEC_NAME) == spec
    except DataError:
        return False
