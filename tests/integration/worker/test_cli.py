from __future__ import annotations

import subprocess
import sys

from tests.repository import ROOT


def test_a_reader_that_goes_away_gets_no_stack_trace() -> None:
    code = "from worker.cli import write_out; import os\n[write_out('x' * 100_000) for _ in range(9)]; os._exit(0)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert (child.wait(), said) == (0, b"")
