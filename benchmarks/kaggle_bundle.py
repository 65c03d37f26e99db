"""Bytes of the script that a session's push carries: all code of `state` and `worker`, and the job.

The job has a start checkpoint and three data versions, as late in a long run. It is packed anew, and the seconds of that
are shown, too.
Run: python -m benchmarks.kaggle_bundle
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.measure import verdict
from orchestrator.backends.kaggle.session.bundle import bundle
from state.architecture import ModelSpec, resolve_architecture
from state.kaggle.job import CheckpointPlace, KaggleJob
from state.kaggle.names import attempt_dataset_slug, control_slug
from state.layout import checkpoint_id
from state.spec import ExpectedCheckpoint, SessionData, SessionSpec, TrainingSpec

RUN = "a-run-with-a-long-name"
LARGEST_KB = 260.0
SHA256 = "0123456789abcdef" * 4
LANGUAGES = {"english": 0.6, "hindi": 0.3, "konkani": 0.1}


def job() -> KaggleJob:
    """Return what the kernel of a late session is told."""
    spec = SessionSpec(
        run=RUN,
        session=30,
        attempt=1,
        fence=30,
        architecture=resolve_architecture(ModelSpec(size="50m"), 32_768),
        training=TrainingSpec(),
        sequence_length=1024,
        data=tuple(
            SessionData(first_step=1_000 * number, data_dir=f"data-{number}", data_sha256=SHA256, mixture=LANGUAGES)
            for number in range(3)
        ),
        checkpoints_dir="checkpoints",
        start=ExpectedCheckpoint(id=checkpoint_id(29_000, 29, 1), step=29_000, manifest_sha256=SHA256, state_sha256=SHA256),
        total_steps=100_000,
        limit_s=12 * 3600.0,
        checkpoint_every_s=600.0,
    )
    return KaggleJob(
        spec=spec,
        owner="somebody",
        accelerator="t4x2",
        start=CheckpointPlace(kind="dataset", owner="somebody", slug=attempt_dataset_slug(RUN, 29, 1), version=13),
        dataset=attempt_dataset_slug(RUN, 30, 1),
        control=control_slug(RUN),
        upload_every_s=3600.0,
        stop_poll_every_s=180.0,
        settle_s=600.0,
        processing_limit_s=3600.0,
        most_versions=10,
    )


def main() -> int:
    """Measure, print, and return 1 when the number is not reached."""
    began = time.perf_counter()
    script = bundle(job(), Path(__file__).parents[1])
    print(f"packed in {time.perf_counter() - began:.2f} s")
    return int(not verdict("source of a pushed kernel", len(script.encode()) / 1000, at_most=LARGEST_KB, unit="kB"))


if __name__ == "__main__":
    sys.exit(main())
