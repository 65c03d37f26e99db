"""Jobs of very small sessions, and mounts as a kernel would find them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from state.data_manifest import DataManifest
from state.kaggle.job import KaggleJob
from state.kaggle.names import attempt_dataset_slug, checkpoint_file_names, control_slug, data_slug
from state.layout import MANIFEST_NAME
from state.spec import SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.kaggle_clients import USER


def job_of(spec: SessionSpec, **values: Any) -> KaggleJob:
    """The job of a session: its names, and patience for a test."""
    slug = attempt_dataset_slug(spec.run, spec.session, spec.attempt)
    return KaggleJob(
        **{
            "spec": spec,
            "owner": USER,
            "accelerator": "cpu",
            "dataset": slug,
            "control": control_slug(spec.run),
            "upload_every_s": 3600.0,
            "stop_poll_every_s": 3600.0,
            "settle_s": 5.0,
            "processing_limit_s": 600.0,
            "most_versions": 5,
            **values,
        }
    )


def mount_data(folder: Path, root: Path, manifest: DataManifest) -> Path:
    """Mount a data folder as its first part's dataset; return the mount."""
    mount = root / "datasets" / USER / data_slug(manifest.data_sha256, 0)
    shutil.copytree(folder, mount)
    return mount


def mount_checkpoint(store: DirectoryCheckpointStore, checkpoint_id: str, mount: Path) -> Path:
    """Mount a checkpoint as a dataset has it, flat; return the mount."""
    mount.mkdir(parents=True, exist_ok=True)
    source = store.folder(checkpoint_id)
    names = tuple(path.name for path in source.iterdir())
    assert MANIFEST_NAME in names
    for name, flat in checkpoint_file_names(checkpoint_id, names).items():
        shutil.copyfile(source / name, mount / flat)
    return mount
