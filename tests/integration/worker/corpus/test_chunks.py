import subprocess
import sys
import zlib
from pathlib import Path

import zstandard

from tests.repository import ROOT


def test_a_line_far_too_long_takes_no_memory_to_pass_over(tmp_path: Path):
    """Lines of 300 MB, read by a process that may take 24 MB more than it began with."""
    line = b"x" * 1_000_000
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(packer.compress(b'{"text": "a"}\n'))
        for _ in range(300):
            file.write(packer.compress(line))
        file.write(packer.compress(b'\n{"text": "b"}\n') + packer.flush())
    with zstandard.open(tmp_path / "a.jsonl.zst", "wb") as packed:
        packed.write(b'{"text": "a"}\n')
        for _ in range(300):
            packed.write(line)
        packed.write(b'\n{"text": "b"}\n')
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from state.data_manifest import Recipe\n"
        "from worker.corpus.chunks import ChunkReader\n"
        "from worker.corpus.records import records\n"
        "from worker.corpus.sources import find_sources\n"
        "recipe = Recipe(max_document_bytes=10**6)\n"
        "files = find_sources([Path(sys.argv[1])], recipe).files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for file in files:\n"
        "    for chunk in ChunkReader(file, recipe, chunk_bytes=10**6).chunks():\n"
        "        for number, found, _ in records(chunk, recipe):\n"
        "            print(file.name, number, found)\n"
        "more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(more * (1 if sys.platform == 'darwin' else 1024), file=sys.stderr)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [
        f"{name} {record}" for name in ("a.jsonl.gz", "a.jsonl.zst") for record in ("1 a", "2 too long for a document", "3 b")
    ]
    assert int(answer.stderr) < 24 * 10**6
