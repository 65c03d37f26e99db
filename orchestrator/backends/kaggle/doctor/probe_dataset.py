"""Write a few bytes to a dataset of the account and read them back: this proves that uploads work, and times them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from orchestrator.backends.kaggle.data.upload import wait_until_ready
from state.clock import Clock
from state.document import Document
from state.errors import DataError
from state.kaggle.names import CANARY_SLUG

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi

CANARY_NAME = "canary.json"
_MOST_VERSIONS = 5
_UPLOAD_LIMIT_S = 300.0  # ample for a few bytes


class Canary(Document):
    """`canary.json`, the contents of the canary dataset."""

    nonce: str
    written_at: datetime


@dataclass(frozen=True)
class WrittenCanary:
    """A canary version that was read back."""

    nonce: str
    version: int
    ready_after_s: float
    """Seconds from the call that created the version until Kaggle showed it as READY."""


def write_canary(api: KaggleApi, clock: Clock, resume_dir: Path, *, limit_s: float) -> WrittenCanary:
    """Create a new version of the canary dataset, wait until Kaggle has processed it, and read it back.

    Args:
        api: The account.
        clock: Clock for waiting.
        resume_dir: Folder for the state of resumable uploads.
        limit_s: Longest wait for Kaggle's processing.

    Raises:
        DataError: the bytes read back differ from those written.
        GemmaOrchError: the dataset cannot be written or read.
    """
    from state.kaggle.datasets import LocalFile, begin_version, ensure_dataset

    canary = Canary(nonce=uuid4().hex, written_at=clock.now())
    resume_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="gemma-orch-canary-") as folder:
        path = Path(folder, CANARY_NAME)
        path.write_bytes(canary.to_json())
        files = (LocalFile(path, CANARY_NAME, path.stat().st_size),)
        info = api.dataset(CANARY_SLUG)
        before = 0
        deadline_s = clock.monotonic() + _UPLOAD_LIMIT_S
        if info is None:
            ensure_dataset(api, CANARY_SLUG, files, resume_dir=resume_dir, deadline_s=deadline_s, clock=clock)
        else:
            before = info.current_version or wait_until_ready(api, CANARY_SLUG, 0, clock=clock, limit_s=limit_s)
            many = len(info.versions) >= _MOST_VERSIONS
            notes = f"gemma-orch canary {canary.nonce}"
            begin_version(
                api, CANARY_SLUG, files, notes, delete_old=many, resume_dir=resume_dir, deadline_s=deadline_s, clock=clock
            )
        began_s = clock.monotonic()
        version = wait_until_ready(api, CANARY_SLUG, before, clock=clock, limit_s=limit_s)
        ready_after_s = clock.monotonic() - began_s
        back = Path(folder, "back.json")
        api.download(CANARY_SLUG, version, CANARY_NAME, back)
        if back.read_bytes() != path.read_bytes():
            raise DataError(
                f"version {version} of {CANARY_SLUG} reads back other bytes than were written",
                remedy="retry; if it happens again, do not trust uploads to Kaggle for now",
            )
    return WrittenCanary(canary.nonce, version, ready_after_s)
