from __future__ import annotations

import os
import subprocess
import sys

from tests.repository import ROOT


def test_help_needs_no_training_extra() -> None:
    hidden = "import sys; [sys.modules.__setitem__(name, None) for name in ('torch', 'numpy', 'sentencepiece', 'safetensors')]; "
    code = hidden + "from worker.__main__ import main; main(['prepare', '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: gemma-orch prepare")
