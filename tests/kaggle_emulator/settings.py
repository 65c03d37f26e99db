"""What an emulator may be told. Seconds are emulator seconds, unless the name says `real`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from tests.kaggle_emulator.errors import ErrorFormat

GIB = 1024**3
HOUR_S = 3600.0


@dataclass
class Settings:
    """Kaggle's numbers and habits; the defaults are what the contract found, and where it found nothing, the harsher case."""

    user: str = "tester"
    key: str = "0123456789abcdef0123456789abcdef"
    access_token: str = "KGAT_emulator_access_token_00000001"
    other_users: Mapping[str, str] = field(default_factory=dict)
    """More accounts: name to key."""
    error_format: ErrorFormat = "nested"
    api_version: str = ""
    """Sent as X-Kaggle-APIVersion; a newer one than the client's makes it print a warning."""

    timescale: float = 0.0
    """How many seconds pass in a real one; 0: the clock is turned by hand, see `EmulatorClock`."""
    start_at: datetime = datetime(2026, 11, 23, tzinfo=UTC)

    one_namespace: bool = True
    """Whether kernels, datasets and models of an account cannot have the same slug."""

    processing_s: float = 60.0
    """From CreateDatasetVersion to READY."""
    refuse_parallel_versions: bool = False
    """Answer 403 to a new version while any older one is processed; always so while the first one is."""
    list_pending_versions: bool = False
    """Show versions that are still processed in GetDataset.versions."""
    upload_bytes_per_real_s: float | None = None
    """How fast the storage takes the bytes of an upload; None: as fast as it can."""
    private_quota_bytes: int = 200 * GIB
    old_versions_count: bool = True
    max_top_level_files: int = 50
    zip_downloads_over_bytes: int | None = None
    """Serve single files above this size as `<file>.zip`."""
    md5_limit_bytes: int = 256 * 1024**2
    """Larger objects carry no `x-goog-hash: md5=`, like composite ones of the real storage."""

    python: str = sys.executable
    """The interpreter that runs pushed scripts."""
    queue_s: float = 30.0
    max_gpu_sessions: int = 2
    max_cpu_sessions: int = 5
    max_tpu_sessions: int = 1
    slot_release_s: float = 0.0
    """How long a session that ended still counts against the number of sessions."""
    gpu_quota_s: float = 30 * HOUR_S
    tpu_quota_s: float = 20 * HOUR_S
    session_limit_s: float = 12 * HOUR_S
    tpu_session_limit_s: float = 9 * HOUR_S
    sigterm_grace_s: float | None = None
    """Send SIGTERM this long before the kill at the limit; nobody has shown that Kaggle does."""
    cancelled_outputs_kept: bool = False
    delete_stops_session: bool = True
    unknown_kernel_status: Literal[403, 404] = 403
    """Both were seen for a kernel that does not exist, or not yet."""
    phone_verified: bool = True
    pin_dataset_versions: bool = False
    """Whether `owner/slug/N` as a source mounts version N; else the current one."""
    session_token_can_write: bool = True
    working_limit_bytes: int = 20 * 10**9
    source_limit_bytes: int = 1_000_000
    mount_layout: Literal["new", "old"] = "new"
    """`/kaggle/input/datasets/<owner>/<slug>` or `/kaggle/input/<slug>`."""
    sandbox: Literal["auto", "namespace", "variable"] = "auto"
    """How a session gets its /kaggle folders: a mount namespace of its own, or KAGGLE_EMULATOR_ROOT."""
    session_environment: Mapping[str, str] = field(default_factory=dict)
    """More variables for the processes of sessions."""
