"""Wall time of the delivery of a 1 GiB checkpoint, against one bare HTTP PUT of the same bytes to the same server.

    python -m benchmarks.kaggle_upload [--rounds 6] [--gigabytes 1] [--folder DIR]

The delivery is all that the worker does from the moment that a checkpoint is committed: second names for its files, the proof
that the account can be written to, the uploads, the version, and the read-back of the version's list of files with their
sizes; and then what the controller does before it counts the checkpoint: it fetches the manifest and compares its digest. The
digest of the state itself is made while the checkpoint is written, so a delivery does not read it once more for that; what a
pass of sha256 over the file would add is shown, and not judged.

A bare PUT is `requests.put` on one connection, of the open file or of its bytes, read at once: the faster one is judged, and what
it takes without the reading is shown. The emulator runs in a process of its own on loopback and processes versions at once; both
use the same disk. Contenders take turns; the best of each counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kaggle_account import Account, emulator
from benchmarks.kaggle_bundle import job
from benchmarks.measure import seconds, verdict
from state.clock import SystemClock
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import find_credentials
from state.kaggle.datasets import LocalFile, ensure_dataset
from state.kaggle.job import KaggleJob
from state.layout import MANIFEST_NAME, checkpoint_id
from state.manifest import DataPosition, Environment, FileEntry, Manifest
from state.stores.checkpoint_store import DirectoryCheckpointStore
from worker.checkpoint.saver import STATE_FILE
from worker.kaggle.outbox import Outbox
from worker.kaggle.uploads import Uploads

LARGEST_RATIO = 1.3
PIECE_BYTES = 16 * 1024**2
PATIENCE_S = 600.0
FILE, AT_ONCE, IN_MEMORY = "PUT of the file", "PUT, read at once", "PUT without the reading"
DELIVERY, DIGEST = "delivery", "sha256"


class Machine:
    """A kernel's machine with one committed checkpoint, and its way to the account."""

    def __init__(self, folder: Path, account: Account, size_bytes: int) -> None:
        os.environ.update(account.environment)  # kagglesdk and requests read it
        self._account_folder = folder / "kaggle"
        self._scratch = folder / "scratch"
        self._job: KaggleJob = job()
        self._clock = SystemClock()
        self._api = KaggleApi(find_credentials(os.environ, folder))
        self._store = DirectoryCheckpointStore(folder / "checkpoints")
        (folder / "checkpoints").mkdir()
        self._id = checkpoint_id(30_000, self._job.spec.session, 1)
        self._commit(size_bytes)
        self.state = self._store.folder(self._id) / STATE_FILE
        self._spec = folder / "session.json"
        self._spec.write_bytes(self._job.spec.to_json())
        self._rounds = 0

    def _commit(self, size_bytes: int) -> None:
        staged = self._store.stage(self._id)
        digest = hashlib.sha256()
        with open(staged / STATE_FILE, "wb") as file:
            for begin in range(0, size_bytes, PIECE_BYTES):
                piece = os.urandom(min(PIECE_BYTES, size_bytes - begin))
                digest.update(piece)
                file.write(piece)
        spec = self._job.spec
        manifest = Manifest(
            id=self._id,
            run=spec.run,
            session=spec.session,
            attempt=spec.attempt,
            fence=spec.fence,
            branch=None,
            step=30_000,
            parent=None,
            created_at=datetime.now(UTC),
            trajectory_sha256="",
            data_sha256="",
            data_position=DataPosition(samples=0),
            next_loss=1.0,
            train_s=1.0,
            environment=Environment(torch="", python="", device="", threads=1, compiled=False, code_sha256=""),
            state_sha256="0" * 64,
            tensors=(),
            files=(FileEntry(name=STATE_FILE, size_bytes=size_bytes, sha256=digest.hexdigest()),),
        )
        self._store.commit(staged, manifest)

    def make_dataset(self) -> None:
        """Make the attempt's dataset, as the controller does before the push."""
        self._rounds += 1
        file = LocalFile(path=self._spec, name=self._spec.name, size_bytes=self._spec.stat().st_size)
        deadline_s = self._clock.monotonic() + PATIENCE_S
        resume = self._scratch / "controller" / str(self._rounds)
        ensure_dataset(self._api, self._job.dataset, [file], resume_dir=resume, deadline_s=deadline_s, clock=self._clock)

    def deliver(self) -> None:
        """Bring the checkpoint to the account, and read back that it stands."""
        scratch = self._scratch / str(self._rounds)
        parcel = Outbox(scratch / "outbox", self._store).put(self._id)
        uploads = Uploads(self._api, self._job, scratch / "uploads", clock=self._clock, say=lambda text: None)
        deadline_s = self._clock.monotonic() + PATIENCE_S
        uploads.prove(deadline_s)
        uploads.send(parcel, deadline_s, tidy=True)
        if uploads.check():
            raise RuntimeError("the version does not stand")
        manifest = parcel.files[-1]
        assert manifest.name.endswith(MANIFEST_NAME)
        sha256 = self._api.download(self._job.dataset, 2, manifest.name, scratch / "read-back.json")
        assert sha256 == parcel.note.manifest_sha256

    def clear(self) -> None:
        """Let the account forget what it has, so that every round finds the same."""
        self._api.delete_dataset(self._job.dataset)
        self.forget_uploads()

    def forget_uploads(self) -> None:
        """Delete what was uploaded and is in no dataset."""
        for path in self._account_folder.glob("*/blobs/*"):
            path.unlink()

    def open_upload(self) -> str:
        """Return an address that takes the state."""
        return self._api.start_upload(STATE_FILE, self.state.stat().st_size, 0)[1]

    def digest(self) -> None:
        """Read the state, and make its digest."""
        with open(self.state, "rb") as file:
            hashlib.file_digest(file, "sha256")


def put_file(url: str, path: Path) -> None:
    import requests

    with open(path, "rb") as file:
        requests.put(url, data=file, timeout=PATIENCE_S).raise_for_status()


def put_bytes(url: str, data: bytes) -> None:
    import requests

    requests.put(url, data=data, timeout=PATIENCE_S).raise_for_status()


def one_round(machine: Machine) -> dict[str, float]:
    """Return the seconds of every contender."""

    def put(act: Callable[[str], None]) -> float:
        url = machine.open_upload()
        taken_s = seconds(lambda: act(url))
        machine.forget_uploads()
        return taken_s

    taken = {FILE: put(lambda url: put_file(url, machine.state)), AT_ONCE: 0.0}
    machine.make_dataset()
    taken[DELIVERY] = seconds(machine.deliver)
    machine.clear()
    taken[AT_ONCE] = put(lambda url: put_bytes(url, machine.state.read_bytes()))
    data = machine.state.read_bytes()
    taken[IN_MEMORY] = put(lambda url: put_bytes(url, data))
    taken[DIGEST] = seconds(machine.digest)
    return taken


def main() -> int:
    """Measure, print, and return 1 when the number is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of 1024 MiB")
    parser.add_argument("--folder", type=Path, help="on the disk to be used (default: the folder for temporary files)")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name, emulator(Path(name), processing_s=0) as account:
        machine = Machine(Path(name), account, int(options.gigabytes * 1024**3))
        for number in range(1, options.rounds + 1):
            rounds.append(one_round(machine))
            print(f"round {number}: " + ", ".join(f"{what} {taken:.2f} s" for what, taken in rounds[-1].items()), flush=True)
    best = {what: min(taken[what] for taken in rounds) for what in rounds[0]}
    print("best: " + ", ".join(f"{what} {taken:.2f} s" for what, taken in best.items()))
    bare_s = min(best[FILE], best[AT_ONCE])
    print(
        f"against a PUT of bytes that are in memory already: {best[DELIVERY] / best[IN_MEMORY]:.2f} x; "
        f"with a pass of sha256 after the delivery: {(best[DELIVERY] + best[DIGEST]) / bare_s:.2f} x"
    )
    what = "delivery of a checkpoint, against the faster bare PUT of its file"
    return int(not verdict(what, best[DELIVERY] / bare_s, at_most=LARGEST_RATIO))


if __name__ == "__main__":
    sys.exit(main())
