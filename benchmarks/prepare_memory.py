"""Peak memory of `prepare` on a corpus and on one that is ten times as large: the whole process tree, every 50 ms.

Judged is anonymous memory, each shared page counted in its share (Pss_Anon of /proc/PID/smaps_rollup); pages of files that the
system merely keeps are printed beside it. It writes some 20 GB below --dir and takes a quarter of an hour, so `make bench`
leaves it out. Linux only.
Run: python -m benchmarks.prepare_memory [--gigabytes 1] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.synthetic_corpus import original, write_corpus

_SAMPLE_S = 0.05
_TIMES = 10
LARGEST_RATIO = 1.10


@dataclass
class Peak:
    """The most that a process tree held at one time."""

    anonymous_mib: float = 0.0
    total_mib: float = 0.0
    largest_process_mib: float = 0.0

    def take(self, root: int) -> None:
        """Look at a process and all below it."""
        held = [_held_mib(pid) for pid in _tree(root)]
        self.anonymous_mib = max(self.anonymous_mib, sum(anonymous for anonymous, _ in held))
        self.total_mib = max(self.total_mib, sum(total for _, total in held))
        self.largest_process_mib = max([self.largest_process_mib, *(anonymous for anonymous, _ in held)])


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def _held_mib(pid: int) -> tuple[float, float]:
    """Return a process's (anonymous memory, all its memory); nothing when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    sizes = {name: int(size.split()[0]) / 1024 for name, size in (line.split(":") for line in lines)}
    return sizes.get("Pss_Anon", 0.0), sizes.get("Pss", 0.0)


def peak_of_prepare(folder: Path, num_bytes: int) -> tuple[Peak, float]:
    """Return (what preparing a corpus of so many bytes takes, the seconds); the folder is emptied."""
    given = original()
    corpus, peak = folder / "corpus", Peak()
    write_corpus(corpus, num_bytes, given.folder)
    command = ["prepare", "--corpus", str(corpus), "--tokenizer", str(given.tokenizer), "--out", str(folder / "out")]
    with open(folder / "log", "wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "worker", *command], stdout=log, stderr=log)
        while process.poll() is None:
            peak.take(process.pid)
            time.sleep(_SAMPLE_S)
        seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit((folder / "log").read_text()[-4000:])
    for part in (corpus, folder / "out"):
        shutil.rmtree(part)
    return peak, seconds


def main() -> int:
    """Measure both, print the ratio, and return 1 when it is too large."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the smaller corpus")
    parser.add_argument("--dir", type=Path, help="a disk with room for 20 times that")
    options = parser.parse_args()
    peaks: list[Peak] = []
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        for gigabytes in (options.gigabytes, options.gigabytes * _TIMES):
            peak, seconds = peak_of_prepare(Path(name), int(gigabytes * 1e9))
            peaks.append(peak)
            print(
                f"{gigabytes:g} GB: {peak.anonymous_mib:.0f} MiB anonymous (one process at most {peak.largest_process_mib:.0f}), "
                f"{peak.total_mib:.0f} MiB with files, {seconds:.0f} s",
                flush=True,
            )
    ratio = peaks[1].anonymous_mib / peaks[0].anonymous_mib
    result = {
        "benchmark": "prepare_memory",
        "gigabytes": options.gigabytes,
        "anonymous_mib": round(peaks[0].anonymous_mib, 1),
        "anonymous_mib_of_ten_times_as_much": round(peaks[1].anonymous_mib, 1),
        "ratio": round(ratio, 3),
        "reach": f"at most {LARGEST_RATIO}",
    }
    print(json.dumps(result))
    return 0 if ratio <= LARGEST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
