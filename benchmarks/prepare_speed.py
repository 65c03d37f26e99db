"""Tokens per second of `prepare`, against bare SentencePiece on texts in memory and against `datasets.map`.

The corpus is the small one over and over with words replaced (see synthetic_corpus.py). `prepare` is measured as a user runs it:
a process from its start to its end, reading, cleaning, looking for duplicates, shards, digests and fsync included. Bare
SentencePiece has its texts in memory already and is timed only while it encodes, with as many threads as there are
cores, in lists of 8192 texts, which is faster than the whole list; the ids come as Python lists, its default, and as
numpy arrays, which is faster and what is judged. `datasets.map` reads the same files and writes its arrow cache, with
as many processes, ids of 16 bits. All take turns.
Run: python -m benchmarks.prepare_speed [--gigabytes 1] [--rounds 2] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import verdict
from benchmarks.peers import run_peer
from benchmarks.synthetic_corpus import original, write_corpus
from state.data_manifest import DataManifest

SMALLEST_OF_BARE = 0.85
SMALLEST_OF_MAP = 2.0

Measure = Callable[[], dict[str, Any]]


def prepared(corpus: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Run `python -m worker prepare` and return what it took."""
    shutil.rmtree(out, ignore_errors=True)
    began, cpu_before = time.perf_counter(), _cpu_of_children_s()
    command = ["prepare", "--corpus", str(corpus), "--tokenizer", str(tokenizer), "--out", str(out), "--json"]
    done = subprocess.run([sys.executable, "-m", "worker", *command], capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr.decode())
    languages = DataManifest.from_json(done.stdout, "prepare").languages.values()
    streams = [stream for language in languages for stream in (language, language.validation) if stream is not None]
    return {
        "seconds": seconds,
        "cpu_s": _cpu_of_children_s() - cpu_before,
        "documents": sum(stream.num_documents for stream in streams),
        "tokens": sum(stream.num_tokens - 2 * stream.num_documents for stream in streams),
    }


def _cpu_of_children_s() -> float:
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def best_of(measures: dict[str, Measure], rounds: int) -> dict[str, dict[str, Any]]:
    """Return each contender's fastest round; they take turns."""
    best: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for name, measure in measures.items():
            taken = measure()
            print(f"round {number + 1}, {name}: {taken['seconds']:.1f} s, {taken['cpu_s']:.1f} s of cores", flush=True)
            if name not in best or taken["seconds"] < best[name]["seconds"]:
                best[name] = taken
    return best


def main() -> int:
    """Measure all, print the ratios, and return 1 when one is too small."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="a disk with room for five times the corpus")
    options = parser.parse_args()
    given = original()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        corpus, scratch = Path(name) / "corpus", Path(name) / "scratch"
        num_bytes = write_corpus(corpus, int(options.gigabytes * 1e9), given.folder)

        def peer(way: str) -> Measure:
            def measure() -> dict[str, Any]:
                shutil.rmtree(scratch, ignore_errors=True)
                return run_peer("peer_prepare", way, str(corpus), str(given.tokenizer), str(scratch))

            return measure

        best = best_of(
            {
                "bare": peer("bare"),
                "bare_arrays": peer("bare_arrays"),
                "prepare": lambda: prepared(corpus, given.tokenizer, Path(name) / "out"),
                "map": peer("map"),
            },
            options.rounds,
        )
    ours, bare = best["prepare"], best["bare_arrays"]
    if (ours["documents"], ours["tokens"]) != (bare["documents"], bare["tokens"]):
        sys.exit(f"prepare made other tokens: {ours} against {bare}")
    result = {
        "benchmark": "prepare_speed",
        "corpus": "shared" if "shared" in given.folder.parts else "sample",
        "megabytes": round(num_bytes / 1e6),
        "tokens": ours["tokens"],
        "seconds": {name: round(taken["seconds"], 1) for name, taken in best.items()},
        "seconds_of_cores": {name: round(taken["cpu_s"], 1) for name, taken in best.items()},
        "tokens_per_s": round(ours["tokens"] / ours["seconds"]),
        "ratio_to_bare_with_lists": round(best["bare"]["seconds"] / ours["seconds"], 3),
    }
    print(json.dumps(result))
    reached = [
        verdict("prepare against bare SentencePiece", bare["seconds"] / ours["seconds"], at_least=SMALLEST_OF_BARE),
        verdict("prepare against datasets.map", best["map"]["seconds"] / ours["seconds"], at_least=SMALLEST_OF_MAP),
    ]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
