from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import pytest
import torch

from state.manifest import Environment
from state.spec import TrainingSpec
from tests.repository import ROOT
from worker.device import code_sha256, computes_alike, configure, cpu_name, environment, num_threads, pick_device

CPU = torch.device("cpu")


def test_the_gpu_is_taken_where_there_is_one():
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_threads_are_those_of_the_spec_or_all():
    assert num_threads(TrainingSpec(threads=3)) == 3
    assert num_threads(TrainingSpec(threads=0)) == len(os.sched_getaffinity(0))


def test_compiled_kernels_are_kept_in_the_cache_folder(tmp_path: Path):
    before, threads = os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None), torch.get_num_threads()
    try:
        configure(TrainingSpec(threads=threads), CPU, str(tmp_path))
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
        configure(TrainingSpec(threads=threads, compile=True), CPU, str(tmp_path))
        assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "inductor")
    finally:
        if before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def test_the_environment_says_all_that_decides_the_bits():
    here = environment(TrainingSpec(threads=2), CPU)
    assert here.torch == torch.__version__
    assert here.threads == 2
    assert not here.compiled
    assert torch.backends.cpu.get_cpu_capability() in here.device


@pytest.mark.parametrize(
    "change", [{"torch": "2.99"}, {"device": "another"}, {"threads": 5}, {"compiled": True}, {"code_sha256": "0"}]
)
def test_another_environment_may_give_other_bits(change: dict[str, object]):
    here = environment(TrainingSpec(threads=2), CPU)
    assert computes_alike(here, here)
    assert not computes_alike(here, Environment.model_validate(here.model_dump() | change))


def test_the_python_version_has_no_part_in_the_arithmetic():
    here = environment(TrainingSpec(threads=2), CPU)
    assert computes_alike(here, here.evolve(python="3.99"))


def make_source(root: Path) -> None:
    for package in ("state", "worker"):
        (root / package / "inner").mkdir(parents=True)
        (root / package / "a.py").write_text("1")
        (root / package / "inner" / "b.py").write_text("2")


def test_the_code_digest_changes_with_any_source_file_and_with_nothing_else(tmp_path: Path):
    make_source(tmp_path)
    digest = code_sha256(tmp_path)
    (tmp_path / "worker" / "notes.txt").write_text("x")
    (tmp_path / "other.py").write_text("x")
    assert code_sha256(tmp_path) == digest
    (tmp_path / "worker" / "inner" / "b.py").write_text("3")
    changed = code_sha256(tmp_path)
    assert changed != digest
    (tmp_path / "worker" / "inner" / "b.py").rename(tmp_path / "worker" / "inner" / "c.py")
    assert code_sha256(tmp_path) not in (digest, changed)


def test_the_code_digest_is_cheap():
    code_sha256(ROOT)
    begun_s = time.process_time()
    code_sha256(ROOT)
    assert time.process_time() - begun_s < 0.05


def test_a_processor_without_a_name_is_known_by_its_architecture(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : Abacus 9\nmodel name : Abacus 9\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Abacus 9"
    (tmp_path / "cpuinfo").write_text("processor : 0\n")
    assert cpu_name(tmp_path / "cpuinfo") == platform.machine()
    assert cpu_name(tmp_path / "missing") in (platform.processor(), platform.machine())
