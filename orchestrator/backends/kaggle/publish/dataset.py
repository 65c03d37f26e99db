"""Publish a checkpoint's weights as a private Kaggle dataset: both export formats, with a card.

The dataset describes its own contents in `published.json`, so that a repeated command uploads nothing twice.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from orchestrator.backends.kaggle.publish.card import CARD_NAME, model_card
from orchestrator.worker_process.command import require_training_extra, worker_command
from state import files
from state.architecture import Architecture, resolve_architecture
from state.data_manifest import TOKENIZER_NAME
from state.document import Document
from state.errors import CorruptCheckpointError, DataError, TemporaryError, UserError
from state.kaggle.names import (
    LONGEST_SLUG,
    NameKind,
    VersionNote,
    attempt_dataset_slug,
    checkpoint_file_names,
    data_slug,
    kind_of,
    slugify,
    weights_slug,
)
from state.layout import MANIFEST_NAME, CheckpointId, FileName, RunName, check_checkpoint_id
from state.manifest import Manifest
from state.quantities import format_size
from state.stores.checkpoint_store import DirectoryCheckpointStore

if TYPE_CHECKING:
    from orchestrator.ports import Ports
    from state.kaggle.api import DatasetInfo, KaggleApi
    from state.kaggle.datasets import LocalFile
    from state.ledger import CheckpointRecord, RunRecord

FORMATS = ("gemma-pytorch", "hf")
PUBLICATION_NAME = "published.json"
MOST_FILES = 50
_SHORTEST_SLUG = 6
_SMALL_BYTES = 2 * 1024**3  # up to here every byte is read back by default: minutes on a home connection
_MARKER = "gemma_orch_export.json"  # every finished export folder contains it
_PROCESSING_LIMIT_S = 3600.0

Export = Callable[[Path, Path, Path, str, Path], None]
"""Exports weights; takes the checkpoint's folder, the architecture file, the tokenizer, the format, and the folder to make."""


class PublishedFile(Document):
    """One file of a publication."""

    size_bytes: int = Field(ge=0)
    sha256: str


class Publication(Document):
    """`published.json`: the contents of a dataset of weights."""

    schema_version: Literal[1] = 1
    run: RunName
    checkpoint: CheckpointId | None = Field(default=None, description="null while the new dataset has no weights yet")
    step: int = 0
    state_sha256: str = ""
    files: dict[FileName, PublishedFile] = Field(default_factory=dict, description="all files except published.json")


@dataclass(frozen=True)
class Published:
    """A publication on the account, and where it is."""

    slug: str
    version: int
    publication: Publication
    is_new: bool
    is_verified: bool
    """Whether every byte was read back; names and sizes are always checked."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.publication.files.values())


@dataclass(frozen=True)
class Wanted:
    """What to publish, and how thoroughly to verify it."""

    checkpoint_id: str
    slug: str | None = None
    """The dataset's slug; None: the run's default."""
    verify: bool | None = None
    """Whether to read every byte back; None: only up to `_SMALL_BYTES`."""
    keep: bool = False
    """Whether to keep the exported files in `publication_folder`, to publish a model from them next."""


def publish(
    api: KaggleApi,
    ports: Ports,
    record: RunRecord,
    wanted: Wanted,
    *,
    say: Callable[[str], None] = lambda _text: None,
    export: Export | None = None,
) -> Published:
    """Publish a checkpoint's weights, unless the dataset already has them.

    Raises:
        UserError: the slug is invalid or belongs to another dataset, or the training extra is missing.
        CorruptCheckpointError: the checkpoint fails verification.
        DataError: the files on the account differ from the uploaded ones.
        TemporaryError: Kaggle is unavailable or slow; the same command resumes.
    """
    slug = checked_slug(record.name, wanted.slug)
    checkpoint = record.checkpoints[wanted.checkpoint_id]
    standing = _standing(api, slug, record.name)
    is_new = standing is None or not _is_of(standing.publication, checkpoint)
    if is_new:
        publisher = _Publisher(api, ports, record, say, export or export_with_worker)
        standing = publisher.publish(slug, checkpoint)
    if not wanted.keep:
        files.remove_tree(publication_folder(ports, record.name, checkpoint))  # an interrupted call may have left it behind
    assert standing is not None, "it is published by now"
    small = sum(file.size_bytes for file in standing.publication.files.values()) <= _SMALL_BYTES
    is_verified = wanted.verify if wanted.verify is not None else small
    if is_verified:
        say("reading back every published byte")
        _verify(api, slug, standing)
    return Published(slug, standing.version, standing.publication, is_new, is_verified)


def checked_slug(run: str, slug: str | None) -> str:
    """Return the user's slug after checking it; without one, the default slug of the run's weights.

    Raises:
        UserError: the user's slug is invalid, or gemma-orch reserves it for something else.
    """
    own = weights_slug(run)
    if slug is None or slug == own:
        return own
    if slugify(slug) != slug or not _SHORTEST_SLUG <= len(slug) <= LONGEST_SLUG:
        raise UserError(
            f"--dataset-slug is invalid: {slug!r}",
            expected=f"{_SHORTEST_SLUG} to {LONGEST_SLUG} lower-case letters, digits and single hyphens",
            remedy=f"choose another --dataset-slug; the default is {own}",
        )
    if (kind := kind_of(slug)) not in (None, NameKind.WEIGHTS):
        raise UserError(
            f"--dataset-slug is invalid: gemma-orch reserves {slug!r} for {kind}",
            expected="a name of your own: an account has one namespace for kernels, datasets and models",
            remedy=f"choose another --dataset-slug; the default is {own}",
        )
    return slug


def export_with_worker(checkpoint: Path, architecture: Path, tokenizer: Path, form: str, out: Path) -> None:
    """Export weights in a worker child, which has torch; its messages go to our stderr.

    Raises:
        UserError: the training extra is missing.
        DataError: the worker failed; its message says why.
    """
    require_training_extra()
    arguments = {
        "--checkpoint-dir": checkpoint,
        "--architecture": architecture,
        "--tokenizer": tokenizer,
        "--format": form,
        "--out": out,
    }
    command = worker_command("export", [str(part) for pair in arguments.items() for part in pair])
    exit_code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if exit_code:
        raise DataError(f"export of the weights as {form} failed: the worker ended with exit code {exit_code}")


@dataclass(frozen=True)
class _Standing:
    """A publication on the account."""

    version: int
    publication: Publication


def publication_folder(ports: Ports, run: str, checkpoint: CheckpointRecord) -> Path:
    """Return the local folder that holds a publication's files until they are on the account."""
    return ports.home.run(run).root / "publish" / check_checkpoint_id(checkpoint.id)


def _standing(api: KaggleApi, slug: str, run: str) -> _Standing | None:
    """Return the publication in a dataset of weights; None if it is missing or incomplete.

    Raises:
        UserError: the dataset holds something else.
    """
    dataset = api.dataset(slug)
    if dataset is None or dataset.current_version is None:
        return None
    names = api.dataset_files(slug, dataset.current_version)
    if names is None:
        raise TemporaryError(f"Kaggle does not list the files of dataset {slug}", remedy="retry the same command later")
    if PUBLICATION_NAME not in names:
        raise _something_else(slug, f"it has no {PUBLICATION_NAME}")
    with tempfile.TemporaryDirectory(prefix="gemma-orch-publish-") as folder:
        target = Path(folder) / PUBLICATION_NAME
        api.download(slug, dataset.current_version, PUBLICATION_NAME, target)
        publication = Publication.from_json(target.read_bytes(), f"{PUBLICATION_NAME} of dataset {slug}")
    if publication.run != run:
        raise _something_else(slug, f"it holds weights of run {publication.run}")
    sizes = {name: file.size_bytes for name, file in publication.files.items()}
    if {name: size for name, size in names.items() if name != PUBLICATION_NAME} != sizes:
        return None
    return _Standing(dataset.current_version, publication)


def _something_else(slug: str, why: str) -> UserError:
    return UserError(
        f"dataset {slug} already exists for something else: {why}",
        remedy="choose another --dataset-slug",
    )


def _is_of(publication: Publication, checkpoint: CheckpointRecord) -> bool:
    return (publication.checkpoint, publication.state_sha256) == (checkpoint.id, checkpoint.state_sha256)


def _verify(api: KaggleApi, slug: str, standing: _Standing) -> None:
    with tempfile.TemporaryDirectory(prefix="gemma-orch-publish-") as folder:
        target = Path(folder) / "file"
        for name, file in standing.publication.files.items():
            sha256 = api.download(slug, standing.version, name, target)
            if sha256 != file.sha256:
                raise DataError(
                    f"{name} in version {standing.version} of dataset {slug} has sha256 {sha256[:12]}",
                    expected=f"{file.sha256[:12]}, the digest of the uploaded file",
                    remedy=f"delete the dataset {slug} on kaggle.com, then the same command again",
                )
            files.remove_tree(target)


class _Publisher:
    """Publishes the weights of one run."""

    def __init__(self, api: KaggleApi, ports: Ports, record: RunRecord, say: Callable[[str], None], export: Export) -> None:
        self._api = api
        self._ports = ports
        self._record = record
        self._say = say
        self._export = export

    def publish(self, slug: str, checkpoint: CheckpointRecord) -> _Standing:
        """Export and upload the weights, and wait until they are complete on the account; exported files stay here until then."""
        from state.kaggle.datasets import publish_version

        folder = publication_folder(self._ports, self._record.name, checkpoint)
        files.make_folder(folder)
        publication, local = self._made(folder, checkpoint)
        self._make_dataset(slug, folder)
        total_bytes = sum(file.size_bytes for file in local)
        self._say(f"uploading {len(local)} files, {format_size(total_bytes)}, to dataset {slug}")
        clock = self._ports.clock
        version = publish_version(
            self._api,
            slug,
            local,
            f"gemma-orch weights of {self._record.name} step {checkpoint.step} {publication.digest()[:16]}",
            delete_old=False,
            resume_dir=folder / "uploads",
            deadline_s=clock.monotonic() + upload_limit_s(total_bytes),
            clock=clock,
            processing_limit_s=_PROCESSING_LIMIT_S,
        )
        return _Standing(version, publication)

    def _made(self, folder: Path, checkpoint: CheckpointRecord) -> tuple[Publication, list[LocalFile]]:
        from state.kaggle.datasets import LocalFile

        architecture = self._architecture()
        source, manifest = self._checkpoint(folder / "checkpoint", checkpoint)
        tokenizer = self._tokenizer(folder)
        shape = folder / "architecture.json"
        files.write_atomically(shape, architecture.to_json())
        paths: dict[str, Path] = {}
        by_form: dict[str, list[str]] = {}
        for form in FORMATS:
            out = folder / form
            if not (out / _MARKER).exists():
                self._say(f"exporting the weights as {form}")
                self._export(source, shape, tokenizer, form, out)
            found = {f"{form}.{path.name}": path for path in sorted(out.iterdir()) if path.name != _MARKER}
            by_form[form] = list(found)
            paths |= found
        card = folder / CARD_NAME
        files.write_atomically(card, model_card(self._record, manifest, architecture, by_form).encode())
        paths[CARD_NAME] = card
        if len(paths) >= MOST_FILES:
            raise UserError(f"the weights are {len(paths) + 1} files", expected=f"at most {MOST_FILES}, Kaggle's limit")
        publication = Publication(
            run=self._record.name,
            checkpoint=checkpoint.id,
            step=checkpoint.step,
            state_sha256=checkpoint.state_sha256,
            files={
                name: PublishedFile(size_bytes=path.stat().st_size, sha256=files.sha256_of_file(path))
                for name, path in paths.items()
            },
        )
        files.write_atomically(folder / PUBLICATION_NAME, publication.to_json())
        local = [LocalFile(path, name, path.stat().st_size) for name, path in paths.items()]
        listing = folder / PUBLICATION_NAME
        return publication, [*local, LocalFile(listing, PUBLICATION_NAME, listing.stat().st_size)]

    def _make_dataset(self, slug: str, folder: Path) -> None:
        """Create the dataset if it is missing; its first version only names the run that it belongs to."""
        from state.kaggle.datasets import LocalFile, ensure_dataset, wait_until_ready

        clock = self._ports.clock
        if self._api.dataset(slug) is None:
            empty = folder / "empty" / PUBLICATION_NAME
            empty.parent.mkdir(exist_ok=True)
            files.write_atomically(empty, Publication(run=self._record.name).to_json())
            local = LocalFile(empty, PUBLICATION_NAME, empty.stat().st_size)
            ensure_dataset(
                self._api,
                slug,
                [local],
                resume_dir=folder / "uploads",
                deadline_s=clock.monotonic() + upload_limit_s(local.size_bytes),
                clock=clock,
            )
        wait_until_ready(self._api, slug, clock=clock, processing_limit_s=_PROCESSING_LIMIT_S)

    def _architecture(self) -> Architecture:
        versions = self._record.header.data
        if not versions:
            raise UserError(f"run {self._record.name} has no data yet, so its vocabulary size is unknown")
        return resolve_architecture(self._record.spec.model, versions[0].vocab_size)

    def _tokenizer(self, folder: Path) -> Path:
        """Return the tokenizer: from the run's data folder, else downloaded from the data's dataset."""
        data = self._record.header.data[0]
        here = self._ports.home.run(self._record.name).data_folder(data.folder) / TOKENIZER_NAME
        if here.is_file() and data.tokenizer_sha256 in (None, files.sha256_of_file(here)):
            return here
        slug = data_slug(data.sha256, 0)
        dataset = self._api.dataset(slug)
        if dataset is None or dataset.current_version is None:
            raise UserError(
                f"tokenizer of run {self._record.name} is missing: neither at {here} nor in dataset {slug}",
                remedy=f"on the machine that has the data: gemma-orch upload --run {self._record.name}; "
                f"or copy the tokenizer to {here}",
            )
        target = folder / TOKENIZER_NAME
        sha256 = self._api.download(slug, dataset.current_version, TOKENIZER_NAME, target)
        if data.tokenizer_sha256 not in (None, sha256):
            raise DataError(
                f"{TOKENIZER_NAME} of dataset {slug} has sha256 {sha256[:12]}",
                expected=f"{data.tokenizer_sha256[:12]}, the tokenizer that run {self._record.name} was trained with"
                if data.tokenizer_sha256 is not None
                else "",
            )
        return target

    def _checkpoint(self, folder: Path, checkpoint: CheckpointRecord) -> tuple[Path, Manifest]:
        """Return a checkpoint's folder and manifest, every byte verified; download it from the account if it is not here."""
        here = DirectoryCheckpointStore(self._ports.home.run(self._record.name).checkpoints)
        store = here if checkpoint.id in here.ids() else DirectoryCheckpointStore(folder)
        if checkpoint.id not in store.ids():
            self._fetch(store, checkpoint)
        manifest = store.verify(checkpoint.id)
        if manifest.state_sha256 != checkpoint.state_sha256:
            raise CorruptCheckpointError(checkpoint.id, f"checkpoint {checkpoint.id} differs from its record in the ledger")
        return store.folder(checkpoint.id), manifest

    def _fetch(self, store: DirectoryCheckpointStore, checkpoint: CheckpointRecord) -> None:
        slug = attempt_dataset_slug(self._record.name, checkpoint.session, checkpoint.attempt)
        dataset = self._api.dataset(slug)
        version = _version_of(dataset, checkpoint.id)
        if version is None:
            raise UserError(
                f"checkpoint {checkpoint.id} is missing: neither in this home nor in dataset {slug}",
                remedy=f"if it is in a kernel's output: gemma-orch promote {checkpoint.id} --run {self._record.name}",
            )
        self._say(f"fetching checkpoint {checkpoint.id}, {format_size(checkpoint.total_bytes)}")
        with store.staged_copy(checkpoint.id) as staged:
            manifest_name = checkpoint_file_names(checkpoint.id, (MANIFEST_NAME,))[MANIFEST_NAME]
            target = staged / MANIFEST_NAME
            sha256 = self._api.download(slug, version, manifest_name, target)
            if sha256 != checkpoint.manifest_sha256:
                raise CorruptCheckpointError(
                    checkpoint.id,
                    f"{manifest_name} of dataset {slug} has sha256 {sha256[:12]}",
                    expected=f"{checkpoint.manifest_sha256[:12]}, the digest in the ledger",
                )
            original = target.read_bytes()
            manifest = Manifest.from_json(original, manifest_name)
            names: Mapping[str, str] = checkpoint_file_names(checkpoint.id, tuple(file.name for file in manifest.files))
            for file in manifest.files:
                self._api.download(slug, version, names[file.name], staged / file.name)
            store.commit_copy(staged, manifest, original)


def _version_of(dataset: DatasetInfo | None, checkpoint_id: str) -> int | None:
    versions = dataset.versions if dataset is not None else ()
    for version in sorted(versions, key=lambda version: version.number, reverse=True):
        note = VersionNote.parse(version.notes)
        if note is not None and note.checkpoint == checkpoint_id:
            return version.number
    return None


def upload_limit_s(total_bytes: int) -> float:
    """Return the most seconds that an upload may take: its time at 100 kB/s, plus an hour."""
    return total_bytes / 100e3 + 3600.0
