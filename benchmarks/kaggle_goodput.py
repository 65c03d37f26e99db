"""Goodput of a chain of sessions of 12 h with 1 GiB of state: what a session loses, measured, and what that is of 12 h.

    python -m benchmarks.kaggle_goodput [--sessions 3] [--steps 30] [--megabytes-per-s 20]

The real command line chains sessions on an emulator in another process. They have a limit of 12 h and all defaults, but end
after a number of steps: so nothing that they lose is scaled, and only their training is shorter. Of every session but the first,
which restores nothing, is taken what `status` counts as billed and not as training that survived: the start of the process,
verifying and restoring the checkpoint, the canary, and the last save. The longest of these overheads is then set against 12 h,
with what a session of 12 h has more of: each of its saves every ten minutes counts as if it stopped the training for as long as
the last one took, which is more than ten times what it does, and each of its hourly uploads as if it slowed the training by
3 %, the most that `kaggle_upload_stall` allows.

Two numbers are judged. The first is what `status` would show: it bills a session until its report, which is written before the
last upload. For the second the whole 12 h are billed, as Kaggle does at most: that upload over a line of the given speed is lost,
and so is all that a session keeps in reserve for its end, most of which it does not need. The seconds in the queue, and what
Kaggle itself needs to start a kernel and to end it, are not known here; they are 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kaggle_account import RUN, Account, User, emulator
from benchmarks.measure import verdict
from orchestrator.monitoring.speed import billed_seconds, goodput
from state.architecture import ModelSpec, resolve_architecture
from state.layout import HomeLayout
from state.ledger import RunRecord
from state.report import SessionReport
from state.stores.run_store import SqliteRunStore
from worker.kaggle.pace import Pace
from worker.session.budget import Budget

LIMIT_S = 12 * 3600.0
SAVE_EVERY_S, UPLOAD_EVERY_S = 600.0, 3600.0  # the defaults
SLOWED_BY_UPLOAD = 0.03
SMALLEST_GOODPUT = 0.97
SAMPLE_VOCABULARY = 2048
PATIENCE_S = 1800.0
MODEL = {
    "num_layers": 5,
    "hidden_size": 1024,
    "intermediate_size": 4864,
    "num_heads": 4,
    "num_kv_heads": 1,
    "head_dim": 256,
    "sliding_window": 8,
    "local_layers_per_global": 4,
}


@dataclass(frozen=True)
class Lost:
    """Where the seconds of one session went that were not training."""

    billed_s: float
    train_s: float
    started_s: float
    """From the launch to the first step."""
    save_s: float
    """The last save."""
    upload_s: float
    upload_bytes_per_s: float
    upload_fixed_s: float

    @property
    def all_s(self) -> float:
        """All that `status` does not count."""
        return self.billed_s - self.train_s


def state_bytes() -> int:
    """Return the bytes of a checkpoint's state."""
    return 12 * resolve_architecture(ModelSpec.model_validate(MODEL), SAMPLE_VOCABULARY).num_parameters()


def lost(record: RunRecord, session: int, report: SessionReport, account: Account) -> Lost:
    """Return what a session lost, from the ledger, its report, and the emulator's journal."""
    attempt = next(attempt for attempt in record.attempts if attempt.session == session)
    slug = f"gemma-orch-{RUN}-s{session:03d}a1"
    requests = [request for request in account.ask("requests") if request["session"] is not None and request["status"] == 200]
    version = next(
        request for request in requests if request["route"] == "CreateDatasetVersion" and request["body"]["datasetSlug"] == slug
    )
    puts = [
        request
        for request in account.ask("requests")
        if request["route"] == "BlobPut" and request["body"]["name"].startswith(f"{report.head}.")
    ]
    state = max(puts, key=lambda request: int(request["body_size"]))
    begun_s, answered_s = min(put["at"] for put in puts), version["at"] + version["real_s"]
    assert attempt.launched_at is not None
    queued_s = (report.started_at - attempt.launched_at).total_seconds()
    return Lost(
        billed_s=billed_seconds(attempt, datetime.now(UTC)),
        train_s=attempt.train_s,
        started_s=queued_s + report.seconds.startup + report.seconds.restore,
        save_s=report.longest_save_s or report.seconds.save,
        upload_s=answered_s - begun_s,
        upload_bytes_per_s=state["body_size"] / state["real_s"],
        upload_fixed_s=answered_s - begun_s - state["real_s"],
    )


def of_12_hours(one: Lost, size_bytes: int, step_s: float) -> tuple[float, float]:
    """Return the goodput of a session of 12 h: billed until it ends, and billed whole."""
    saves_s = LIMIT_S / SAVE_EVERY_S * one.save_s + LIMIT_S / UPLOAD_EVERY_S * one.upload_s * SLOWED_BY_UPLOAD
    measured = Pace().after(size_bytes, size_bytes / one.upload_bytes_per_s, one.upload_s)
    delivery_s = max(pace.reserve_s(size_bytes, LIMIT_S) for pace in (Pace(), measured))
    budget = Budget(0.0, LIMIT_S, SAVE_EVERY_S, one.save_s, 0.0, forward_s=step_s, delivery_s=delivery_s)
    budget = budget.after_step(step_s, step_s)
    print(f"kept for the end: {budget.needed_s(saving=True):.0f} s, {delivery_s:.0f} s of it for the upload")
    trained_s = LIMIT_S - one.started_s - saves_s - budget.needed_s(saving=True)
    billed_s = trained_s + saves_s + one.all_s
    return trained_s / billed_s, trained_s / LIMIT_S


def main() -> int:
    """Run the chain, print what it loses, and return 1 when that is too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--megabytes-per-s", type=float, default=20.0)
    options = parser.parse_args()
    speed = options.megabytes_per_s * 1e6
    with (
        tempfile.TemporaryDirectory() as name,
        emulator(Path(name), processing_s=0, queue_s=0, upload_bytes_per_real_s=speed) as account,
    ):
        user = User(
            Path(name, "machine"),
            account,
            total_steps=options.sessions * options.steps,
            threads=2,
            model=MODEL,
            session={"steps": options.steps, "limit": "12h"},
            kaggle={},
        )
        user.prepare()
        controller = user.start()
        try:
            code = controller.wait(PATIENCE_S)
        finally:
            controller.kill()
        if code != 0:
            raise RuntimeError(user.said())
        home = HomeLayout(Path(user.environment["GEMMA_ORCH_HOME"]))
        record = SqliteRunStore(home.ledger).load(RUN)
        all_lost = []
        for session in range(1, options.sessions + 1):
            path = home.run(RUN).attempt(session, 1).report
            report = SessionReport.from_json(path.read_bytes(), str(path))
            all_lost.append(lost(record, session, report, account))
    for number, one in enumerate(all_lost, start=1):
        print(
            f"session {number}: billed {one.billed_s:.1f} s, {one.train_s:.1f} s of it trained, {one.all_s:.1f} s lost: "
            f"{one.started_s:.1f} s until the first step, last save {one.save_s:.1f} s, upload {one.upload_s:.1f} s "
            f"at {one.upload_bytes_per_s / 1e6:.0f} MB/s"
        )
    print(f"status says of these short sessions: goodput {goodput(record, datetime.now(UTC)) or 0.0:.3f}")
    longest = max(all_lost[1:], key=lambda one: one.all_s)
    until_end, whole = of_12_hours(longest, state_bytes(), longest.train_s / options.steps)
    what = f"goodput of sessions of 12 h with {state_bytes() / 2**30:.2f} GiB of state"
    reached = [
        verdict(f"{what}, as status computes it", until_end, at_least=SMALLEST_GOODPUT, unit=""),
        verdict("the same, when the reserve of their end is billed", whole, at_least=SMALLEST_GOODPUT, unit=""),
    ]
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
