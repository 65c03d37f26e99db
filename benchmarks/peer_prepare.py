"""The peers of `prepare`, measured in this very process: bare SentencePiece, and `datasets.map`. Needs the peers' environment.

Run: python -m benchmarks.peer_prepare {bare | bare_arrays | map} CORPUS TOKENIZER SCRATCH
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import sentencepiece

NUM_THREADS = os.cpu_count() or 1
LIST_DOCUMENTS = 8192
MAP_BATCH = 1000  # the default of datasets.map


def bare(files: list[Path], model: Path, *, arrays: bool) -> dict[str, Any]:
    """Encode texts in memory, in lists of some thousand, with as many threads as there are cores; only that is timed."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = [json.loads(line)["text"] for file in files for line in file.read_bytes().split(b"\n") if line]
    options = {"return_type": "numpy"} if arrays else {}
    num_tokens = 0
    began, cpu_before = time.perf_counter(), _cpu_s()
    for start in range(0, len(texts), LIST_DOCUMENTS):
        ids = processor.encode(texts[start : start + LIST_DOCUMENTS], num_threads=NUM_THREADS, **options)
        num_tokens += sum(map(len, ids))
    return {"seconds": time.perf_counter() - began, "cpu_s": _cpu_s() - cpu_before, "tokens": num_tokens, "documents": len(texts)}


def mapped(files: list[Path], model: Path, scratch: Path) -> dict[str, Any]:
    """Read the files, encode batches in as many processes as there are cores, write the result's arrow files."""
    import datasets

    datasets.disable_progress_bars()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": processor.encode(batch["text"])}

    began, cpu_before = time.perf_counter(), _cpu_s()
    raw = datasets.load_dataset(
        "json", data_files=[str(file) for file in files], split="train", num_proc=NUM_THREADS, cache_dir=str(scratch)
    )
    encoded = raw.map(
        encode,
        batched=True,
        batch_size=MAP_BATCH,
        num_proc=NUM_THREADS,
        remove_columns=["text"],
        features=datasets.Features({"ids": datasets.List(datasets.Value("uint16"))}),
        load_from_cache_file=False,
    )
    return {"seconds": time.perf_counter() - began, "cpu_s": _cpu_s() - cpu_before, "documents": len(encoded)}


def _cpu_s() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def main() -> None:
    way, corpus, model, scratch = sys.argv[1], *map(Path, sys.argv[2:])
    files = sorted(corpus.glob("*/*.jsonl"))
    match way:
        case "map":
            result = mapped(files, model, scratch)
        case "bare" | "bare_arrays":
            result = bare(files, model, arrays=way == "bare_arrays")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
