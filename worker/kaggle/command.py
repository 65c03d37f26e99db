"""`python -m worker kaggle JOB.json`: runs a kernel's session by hand."""

from __future__ import annotations

import argparse
from collections.abc import MutableMapping
from pathlib import Path

from state.errors import UserError
from worker.kaggle.kernel import KernelPaths, main


def run_command(arguments: list[str], environment: MutableMapping[str, str]) -> int:
    """Run the session of a job file; its folder becomes the kernel's output folder. Return the exit code.

    Raises:
        UserError: the file cannot be read.
    """
    parser = argparse.ArgumentParser("python -m worker kaggle", description=__doc__)
    parser.add_argument("job", type=Path, help="a KaggleJob as JSON; outputs go to its folder")
    parser.add_argument("--input", type=Path, help="folder that contains the inputs (default: where Kaggle mounts them)")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    chosen = parser.parse_args(arguments)
    try:
        job_json = chosen.job.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{chosen.job} cannot be read: {error.strerror}", expected="a KaggleJob as JSON") from error
    usual = KernelPaths.of(environment)
    places = KernelPaths(
        input=chosen.input or usual.input,
        working=chosen.job.absolute().parent,
        scratch=(chosen.scratch or usual.scratch).absolute(),
    )
    return main(job_json, environment, places)
