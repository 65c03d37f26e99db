import subprocess
import sys
from pathlib import Path

import pytest

from state.installation import install_command
from tests.repository import ROOT


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "x"}\n')
    return root


@pytest.mark.parametrize(("name", "library"), [("hindi/a.parquet", "pyarrow"), ("hindi/a.jsonl.zst", "zstandard")])
def test_a_library_that_is_not_installed_is_asked_for_when_the_first_such_file_is_found(tmp_path: Path, name: str, library: str):
    fill(tmp_path, name, "hindi/b.jsonl.gz")
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from pathlib import Path\n"
        "from state.data_manifest import Recipe\n"
        "from state.errors import UserError\n"
        "from worker.corpus.sources import find_sources\n"
        "try:\n"
        "    find_sources([Path(sys.argv[1])], Recipe())\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{name} cannot be read without the library {library}" in answer.stdout
    assert install_command("train", "corpus") in answer.stdout
