"""`make bench`: every measurement, one after another, each in a process of its own.

All but `prepare_memory`, which takes a quarter of an hour and 40 GB of disk.
"""

from __future__ import annotations

import subprocess
import sys

MEASUREMENTS = (
    "train_step",
    "checkpoint_stall",
    "verified_restore",
    "data_seek",
    "scratch_stall",
    "sequence_speed",
    "prepare_speed",
    "command_line",
    "goodput",
    "kaggle_bundle",
    "kaggle_upload",
    "kaggle_upload_stall",
    "kaggle_seam",
    "kaggle_goodput",
    "kaggle_controller",
)


def main() -> int:
    """Run them all, and return 1 when any number is not reached."""
    results = {
        name: subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode for name in MEASUREMENTS
    }
    for name, code in results.items():
        print(f"{name}: {'all reached' if code == 0 else 'not all reached'}")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
