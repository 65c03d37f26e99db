from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from state.installation import install_command
from tests.patience import PATIENCE_S, wait_until
from tests.repository import ROOT
from tests.sessions import SmallRun, another_torch
from worker.__main__ import main


def worker(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_spec_that_is_not_there_is_no_stack_trace(capsys: pytest.CaptureFixture[str]):
    assert main(["nowhere/session.json"]) == 2
    assert "nowhere/session.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("prepare", "--out", "data"), ("nowhere/session.json",)], ids=["prepare", "session"])
def test_a_system_without_file_locks_is_no_stack_trace(arguments: tuple[str, ...]):
    program = "import sys; sys.modules['fcntl'] = None; from worker.__main__ import main; sys.exit(main(sys.argv[1:]))"
    said = worker("-c", program, *arguments)
    assert "Traceback" not in said.stderr
    assert (said.returncode, "Linux or macOS" in said.stderr) == (2, True)


def test_a_verbs_mistake_is_no_stack_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prove", "--spec", str(tmp_path / "x"), "--steps", "2", "--pieces", "1", "--work-dir", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_ctrl_c_ends_a_verb_and_its_sessions_without_a_stack_trace(ram_path: Path):
    run = SmallRun(ram_path)
    spec = run.write(run.spec(total_steps=1_000_000))
    work = ram_path / "work"
    proof = [
        sys.executable,
        "-m",
        "worker",
        "prove",
        "--spec",
        str(spec),
        "--steps",
        "100000",
        "--pieces",
        "2",
        "--work-dir",
        str(work),
    ]
    child = subprocess.Popen(proof, stderr=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: any(work.rglob("heartbeat.json")), process=child)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, b"Traceback" in said) == (130, False)


def test_help_lists_the_verbs_and_the_exit_codes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(
        word in said
        for word in ("prepare", "tokenizer", "data show", "export", "prove", "0 done, 2 the user must change something")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare"], "required: --out"),
        (["data"], "there is no verb data\n"),
        (["data", "shoe"], "there is no verb data shoe\n"),
        (["data", "show"], "one of the arguments --session --data is required"),
    ],
)
def test_wrong_arguments_of_a_verb_are_explained(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["export"], ["prove"]])
def test_wrong_arguments_are_the_users(arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_without_the_training_extra_it_says_how_to_get_it(ram_path: Path):
    run = SmallRun(ram_path)
    spec = run.spec()
    hidden = "import sys; sys.modules['torch'] = None; from worker.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = worker("-c", hidden, str(run.write(spec)))
    assert done.returncode == 2, done.stderr
    assert "torch is not installed" in done.stderr
    assert install_command("train") in done.stderr
    assert "Traceback" not in done.stderr
    assert "torch is not installed" in run.report(spec).reason
    verb = worker("-c", hidden, "export", "--checkpoint-dir", "x")
    assert (verb.returncode, install_command("train") in verb.stderr) == (2, True), verb.stderr


@pytest.mark.parametrize(
    ("package", "code", "words"),
    [
        ("torch", "__version__ = '2.9.1+cu126'", "torch is 2.9.1+cu126, which gemma-orch does not support"),
        ("torch", "__version__ = '2.16.0'", "torch is 2.16.0, which gemma-orch does not support"),
        ("torch", "raise OSError('libcuda.so.1: no such file')", "torch is installed, but cannot be imported: OSError: libcuda"),
        ("numpy", "raise ImportError('another C library')", "numpy is installed, but cannot be imported: ImportError: another"),
    ],
    ids=["too old", "too new", "broken torch", "broken numpy"],
)
def test_a_torch_that_cannot_be_used_is_reported_with_what_to_do(package: str, code: str, words: str, ram_path: Path):
    run = SmallRun(ram_path / "run")
    spec = run.spec()
    path = another_torch(ram_path / "other", code, package=package)
    for arguments in ([str(run.write(spec))], ["export", "--checkpoint-dir", "x"]):
        done = worker("-m", "worker", *arguments, environment={"PYTHONPATH": path})
        assert (done.returncode, "Traceback" in done.stderr, words in done.stderr) == (2, False, True), done.stderr
    told = run.report(spec)
    assert (told.outcome, told.error_class) == ("failed", "user")
    assert words in told.reason
    assert "Expected: " in told.reason
    assert "Next: " in told.reason
    assert install_command("train") in told.reason


def test_a_module_that_is_missing_for_another_reason_is_no_missing_extra():
    hidden = "import sys; sys.modules['worker.session.prove'] = None; from worker.__main__ import main; sys.exit(main(['prove']))"
    done = worker("-c", hidden)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_nobody_listening_is_no_error(ram_path: Path):
    run = SmallRun(ram_path)
    spec = run.spec(max_steps=1)
    process = run.start(spec)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(60) == 0
    assert run.report(spec).saved_step == 1


def test_a_first_step_does_not_wait_for_the_compiler_or_the_network(ram_path: Path):
    """What takes a second to import, and no session of this kind needs."""
    run = SmallRun(ram_path)
    code = (
        "import sys; from worker.__main__ import main; code = main(sys.argv[1:]);"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'torch.distributed.checkpoint', 'sentencepiece', 'sympy')"
        " if name in sys.modules]); sys.exit(code)"
    )
    first = run.spec(1, max_steps=1)
    assert worker("-c", code, str(run.write(first))).returncode == 0
    done = worker("-c", code, str(run.write(run.spec(2, start=run.expected(), max_steps=1))))
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_torch_that_lost_what_is_private_to_it_trains_on_and_says_what_takes_its_place(ram_path: Path):
    lost = """
import sys, torch
from types import SimpleNamespace
torch.ops.mkldnn._linear_pointwise = torch.ops.aten.gelu_backward = SimpleNamespace(default=SimpleNamespace(_schema="changed"))
from worker.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    whole, less = SmallRun(ram_path / "whole"), SmallRun(ram_path / "less")
    assert whole.run(whole.spec(max_steps=2)) == 0
    done = worker("-c", lost, str(less.write(less.spec(max_steps=2))))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has no aten::gelu_backward that gemma-orch knows: autograd is used") == 1
    found, expected = less.newest(), whole.newest()
    assert found is not None
    assert expected is not None
    from worker.model.matmul import USES_ONEDNN

    assert done.stderr.count("has no mkldnn::_linear_pointwise that gemma-orch knows") == int(USES_ONEDNN)
    assert found.state_sha256 == expected.state_sha256 or USES_ONEDNN  # torch's own product rounds otherwise


@pytest.mark.parametrize("verb", ["session", "prove"])
def test_threads_that_openmp_would_take_away_are_kept_whatever_the_environment_says(verb: str, ram_path: Path):
    run = SmallRun(ram_path)
    spec = run.write(run.spec(max_steps=1))
    arguments = [str(spec)]
    if verb == "prove":
        arguments = ["prove", "--spec", str(spec), "--steps", "1", "--pieces", "1", "--work-dir", str(ram_path / "work")]
    done = worker("-m", "worker", *arguments, environment={"OMP_DYNAMIC": "TRUE"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("OMP_DYNAMIC=TRUE makes products of matrices wrong: it is set to FALSE here") == 1


def test_a_session_that_gets_fewer_threads_than_it_uses_is_refused_before_it_trains(ram_path: Path):
    from worker.model.matmul import USES_ONEDNN

    run = SmallRun(ram_path)
    spec = run.spec(max_steps=1, training={"threads": 2})
    done = worker("-m", "worker", str(run.write(spec)), environment={"OMP_THREAD_LIMIT": "1"})
    if not USES_ONEDNN:
        pytest.skip("on this processor torch's own product is used, which is right with any number of threads")
    assert done.returncode == 2, done.stderr
    assert "oneDNN's product is wrong in this process" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run.report(spec).outcome, run.report(spec).saved_step) == ("failed", None)
    assert run.newest() is None
