"""Pushed scripts really run, in a world that looks like Kaggle's (contract 2.4, 3.3, 5)."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from kagglesdk.kernels.types.kernels_api_service import (
    ApiDownloadKernelOutputRequest,
    ApiDownloadKernelOutputZipRequest,
    ApiListKernelFilesRequest,
    ApiListKernelSessionOutputRequest,
    ApiListKernelSessionOutputResponse,
)

from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S

SLUG = "train-s1"
ROOT = "import os; ROOT = os.environ.get('KAGGLE_EMULATOR_ROOT', '/kaggle')\n"
"""Where this machine allows no namespaces, a variable says where /kaggle is."""
READ = ROOT + "print(open(ROOT + '/input/datasets/tester/my-data/a.bin').read())"


@pytest.fixture
def kaggle(ram_path: Path) -> Iterator[Sdk]:
    with connected(ram_path) as connection:
        yield connection


def said(kaggle: Sdk, slug: str = SLUG) -> str:
    """Wait for the end of a session, and give what it printed."""
    session = kaggle.emulator.wait_for_session(slug)
    return "".join(line["data"] for line in session.log)


def until(path: Path) -> str:
    """Write a script that waits until the file exists."""
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)\n"


def output(kaggle: Sdk, slug: str = SLUG, page_size: int = 200) -> ApiListKernelSessionOutputResponse:
    request = ApiListKernelSessionOutputRequest()
    request.user_name, request.kernel_slug, request.page_size = USER, slug, page_size
    return kaggle.kernels.list_kernel_session_output(request)


def test_a_script_runs_to_its_end_and_leaves_its_files_and_its_log(kaggle: Sdk) -> None:
    pushed = kaggle.push(
        SLUG,
        """
        import os, sys
        print("out", os.getcwd())
        print("err", file=sys.stderr)
        os.makedirs("deep")
        open("deep/weights.bin", "w").write("w" * 10)
        """,
    )
    assert pushed.error == ""
    assert said(kaggle)
    assert kaggle.status(SLUG, "v1") == "COMPLETE"
    answer = output(kaggle)
    assert [file.file_name for file in answer.files] == ["deep/weights.bin"]
    assert requests.get(answer.files[0].url, timeout=PATIENCE_S).content == b"w" * 10
    log = json.loads(answer.log)
    assert {line["stream_name"] for line in log} == {"stdout", "stderr"}
    assert all(line["time"] >= 0 for line in log)
    files = ApiListKernelFilesRequest()
    files.user_name, files.kernel_slug = USER, SLUG
    assert [(file.name, file.size) for file in kaggle.kernels.list_kernel_files(files).files] == [("deep/weights.bin", 10)]
    one = ApiDownloadKernelOutputRequest()
    one.owner_slug, one.kernel_slug, one.file_path = USER, SLUG, "deep/weights.bin"
    assert kaggle.kernels.download_kernel_output(one).content == b"w" * 10
    packed = ApiDownloadKernelOutputZipRequest()
    packed.kernel_session_id = 1
    assert kaggle.kernels.download_kernel_output_zip(packed).content[:2] == b"PK"


def test_a_session_finds_the_variables_and_folders_of_kaggle(kaggle: Sdk) -> None:
    kaggle.create_dataset("my-data", {"a.bin": b"123"})
    existed = Path("/kaggle").exists()
    kaggle.push(
        SLUG,
        """
        import json, os
        ROOT = os.environ.get("KAGGLE_EMULATOR_ROOT", "/kaggle")
        token = open(os.environ["KAGGLE_API_V1_TOKEN"]).read()
        print(json.dumps({
            "run": os.environ["KAGGLE_KERNEL_RUN_TYPE"], "token": token[:5], "home": os.path.isdir(os.environ["HOME"]),
            "kaggle": {"input", "src", "temp", "working"} <= set(os.listdir(ROOT)),
            "cwd": os.path.samefile(os.getcwd(), ROOT + "/working"),
            "data": open(ROOT + "/input/datasets/tester/my-data/a.bin").read(),
            "local": os.environ["KAGGLE_API_ENVIRONMENT"],
            "proxy": os.environ["http_proxy"] == os.environ["KAGGLE_DATA_PROXY_URL"],
        }))
        try:
            open(ROOT + "/input/x", "w")
        except OSError as error:
            print("read-only:", error.errno)
        """,
        dataset_data_sources=[f"{USER}/my-data"],
    )
    found, *refused = said(kaggle).splitlines()
    assert json.loads(found) == {
        "run": "Batch",
        "token": "KGSS_",
        "home": True,
        "kaggle": True,
        "cwd": True,
        "data": "123",
        "local": "LOCALHOST",
        "proxy": True,
    }
    assert refused in (["read-only: 30"], ["read-only: 13"]) or not kaggle.emulator.sessions.uses_namespaces()
    assert kaggle.emulator.sessions.all()[0].mounted == {f"{USER}/my-data": 1}
    assert Path("/kaggle").exists() == existed


def test_without_a_namespace_one_variable_names_the_folders(ram_path: Path) -> None:
    with connected(ram_path, sandbox="variable", mount_layout="old") as kaggle:
        kaggle.create_dataset("my-data", {"a.bin": b"123"})
        code = """
            import os
            root = os.environ["KAGGLE_EMULATOR_ROOT"]
            assert os.path.samefile(os.getcwd(), root + "/working")
            print(open(root + "/input/my-data/a.bin").read())
        """
        kaggle.push(SLUG, code, dataset_data_sources=[f"{USER}/my-data"])
        assert said(kaggle) == "123\n"


def test_the_old_layout_mounts_by_slug_alone(ram_path: Path) -> None:
    with connected(ram_path, mount_layout="old") as kaggle:
        kaggle.create_dataset("my-data", {"a.bin": b"123"})
        kaggle.push(SLUG, ROOT + "print(os.listdir(ROOT + '/input'))", dataset_data_sources=[f"{USER}/my-data"])
        assert said(kaggle) == "['my-data']\n"


def test_a_session_sees_the_version_that_is_current_when_it_starts(ram_path: Path) -> None:
    with connected(ram_path, processing_s=36_000, queue_s=10) as kaggle:
        kaggle.create_dataset("my-data", {"a.bin": b"1"})
        kaggle.new_version("my-data", {"a.bin": b"2"}, ready=False)
        for slug, seen in (("early-one", "1"), ("later-one", "2")):
            kaggle.push(slug, READ, dataset_data_sources=[f"{USER}/my-data/2"])
            assert said(kaggle, slug) == f"{seen}\n"
            kaggle.emulator.clock.advance(36_000)


def test_a_source_may_name_its_version_where_the_server_honours_it(ram_path: Path) -> None:
    with connected(ram_path, pin_dataset_versions=True) as kaggle:
        kaggle.create_dataset("my-data", {"a.bin": b"1"})
        kaggle.new_version("my-data", {"a.bin": b"2"})
        kaggle.push(SLUG, READ, dataset_data_sources=[f"{USER}/my-data/1"])
        assert said(kaggle) == "1\n"


def test_a_mount_can_be_stale_or_missing(kaggle: Sdk) -> None:
    kaggle.create_dataset("my-data", {"a.bin": b"1"})
    kaggle.new_version("my-data", {"a.bin": b"2"})
    kaggle.emulator.faults.add(Fault("SessionStart", "stale_mount", calls={1}))
    kaggle.emulator.faults.add(Fault("SessionStart", "missing_mount", calls={2}, files="*/my-data"))
    for version in ({f"{USER}/my-data": 1}, {}, {f"{USER}/my-data": 2}):
        kaggle.push(SLUG, dataset_data_sources=[f"{USER}/my-data"])
        assert kaggle.emulator.wait_for_session(SLUG).mounted == version


def test_the_output_of_a_kernel_can_be_the_source_of_another(kaggle: Sdk) -> None:
    kaggle.push(SLUG, "open('ckpt.bin', 'w').write('state')")
    said(kaggle)
    code = ROOT + "print(open(ROOT + '/input/notebooks/tester/train-s1/ckpt.bin').read())"
    assert kaggle.push("train-s2", code, kernel_data_sources=[f"{USER}/{SLUG}"]).invalid_kernel_sources == []
    assert said(kaggle, "train-s2") == "state\n"


def test_a_session_is_queued_then_runs_then_has_ended(ram_path: Path) -> None:
    with connected(ram_path, queue_s=100) as kaggle:
        kaggle.push(SLUG, until(ram_path / "go"))
        assert kaggle.status(SLUG) == "QUEUED"
        kaggle.emulator.clock.advance(100)
        kaggle.emulator.wait(lambda: kaggle.status(SLUG) == "RUNNING")
        assert (output(kaggle).log, output(kaggle).files) == ("", [])
        (ram_path / "go").touch()
        kaggle.emulator.wait(lambda: kaggle.status(SLUG) == "COMPLETE")


def test_a_script_that_fails_is_an_error_and_its_files_are_lost_but_not_its_log(kaggle: Sdk) -> None:
    kaggle.push(SLUG, "open('x.bin', 'w').write('x'); raise SystemExit('no good')")
    assert "no good" in said(kaggle)
    assert kaggle.status(SLUG) == "ERROR"
    assert (output(kaggle).files, "no good" in output(kaggle).log) == ([], True)


def test_at_its_limit_a_session_is_killed_with_all_its_processes_and_its_files_are_lost(kaggle: Sdk, ram_path: Path) -> None:
    alive = ram_path / "alive"
    code = f"""
        import subprocess, sys, time
        open("x.bin", "w").write("x")
        child = "import time\\nwhile True: open({str(alive)!r}, 'w').write(str(time.time())); time.sleep(0.02)"
        subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
        time.sleep(60)
    """
    kaggle.push(SLUG, code, session_timeout_seconds=40_000)
    kaggle.emulator.wait(alive.exists)
    kaggle.emulator.clock.advance(40_000)
    session = kaggle.emulator.wait_for_session(SLUG)
    assert kaggle.status(SLUG) == "CANCEL_ACKNOWLEDGED"
    assert output(kaggle).files == []
    assert session.used_s(0, kaggle.emulator.clock.now()) >= 40_000
    last = alive.read_text()
    threading.Event().wait(0.1)
    assert alive.read_text() == last


def test_what_a_cancelled_session_left_may_be_kept(ram_path: Path) -> None:
    with connected(ram_path, cancelled_outputs_kept=True) as kaggle:
        kaggle.push(SLUG, "import time; open('x.bin', 'w').write('x'); print(1, flush=True); time.sleep(60)")
        kaggle.emulator.wait(lambda: kaggle.emulator.sessions.all()[0].log)
        kaggle.emulator.clock.advance(43_200)
        said(kaggle)
        assert kaggle.status(SLUG) == "CANCEL_ACKNOWLEDGED"
        assert [file.file_name for file in output(kaggle).files] == ["x.bin"]


def test_a_session_may_be_warned_before_the_end_or_signalled_by_hand(ram_path: Path) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
        print("ready", flush=True)
        time.sleep(60)
    """
    with connected(ram_path, sigterm_grace_s=20) as kaggle:
        for slug in ("signalled", "warned-one"):
            kaggle.push(slug, code)
            session = kaggle.emulator.sessions.all()[-1]
            kaggle.emulator.wait(lambda: session.log)  # noqa: B023
            if slug == "signalled":
                kaggle.emulator.sessions.send_signal(session, signal.SIGTERM)
            else:
                kaggle.emulator.clock.advance(43_200 - 20)
            assert said(kaggle, slug) == "ready\nsaved\n"
            assert kaggle.status(slug) == "COMPLETE"


def test_gpu_seconds_are_counted_while_the_machine_runs(kaggle: Sdk, ram_path: Path) -> None:
    kaggle.push(SLUG, until(ram_path / "go"), machine_shape="NvidiaTeslaT4")
    kaggle.emulator.wait(lambda: kaggle.status(SLUG) == "RUNNING")
    kaggle.emulator.clock.advance(200)
    (ram_path / "go").touch()
    said(kaggle)
    assert kaggle.emulator.quota.used_s(USER, "GPU", kaggle.emulator.clock.now()) == 200


def test_a_script_can_ask_which_machine_it_got_and_it_may_be_another_one(kaggle: Sdk) -> None:
    code = """
        import os, subprocess
        smi = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        print(os.environ["KAGGLE_EMULATOR_ACCELERATOR"], smi.returncode, smi.stdout.count("Tesla T4"))
    """
    kaggle.emulator.faults.add(Fault("SessionStart", "shape", calls={2}, value="None"))
    for seen in ("NvidiaTeslaT4 0 2", "None 9 0"):
        kaggle.push(SLUG, code, machine_shape="NvidiaTeslaT4")
        assert said(kaggle).strip() == seen


def test_a_session_can_stay_queued_or_run_for_ever(ram_path: Path) -> None:
    with connected(ram_path, session_limit_s=10.0) as kaggle:
        kaggle.emulator.faults.add(Fault("SessionStart", "queue", calls={1}), Fault("SessionStart", "never_end", calls={2}))
        kaggle.push("queued-one")
        kaggle.push("running-one")
        kaggle.emulator.wait(lambda: kaggle.status("running-one") == "RUNNING")
        kaggle.emulator.clock.advance(24 * 3600)
        assert (kaggle.status("queued-one"), kaggle.status("running-one")) == ("QUEUED", "RUNNING")


def test_a_session_that_completes_can_lose_its_outputs(kaggle: Sdk) -> None:
    kaggle.emulator.faults.add(Fault("SessionEnd", "lose_outputs"))
    kaggle.push(SLUG, "open('x.bin', 'w').write('x')")
    said(kaggle)
    assert (kaggle.status(SLUG), output(kaggle).files) == ("COMPLETE", [])


def test_only_five_hundred_output_files_are_ever_listed(kaggle: Sdk) -> None:
    kaggle.push(SLUG, "for n in range(510): open(f'f{n:03}', 'w').close()")
    said(kaggle)
    request = ApiListKernelSessionOutputRequest()
    request.user_name, request.kernel_slug, request.page_size = USER, SLUG, 200
    pages = []
    while not pages or request.page_token:
        answer = kaggle.kernels.list_kernel_session_output(request)
        pages.append(len(answer.files))
        request.page_token = answer.next_page_token
    assert pages == [200, 200, 100]


def test_too_much_output_is_an_error(ram_path: Path) -> None:
    with connected(ram_path, working_limit_bytes=100) as kaggle:
        kaggle.push(SLUG, "open('x.bin', 'w').write('x' * 101)")
        said(kaggle)
        assert kaggle.status(SLUG) == "ERROR"


def test_the_log_of_a_running_session_is_streamed_and_that_of_an_ended_one_sent_whole(kaggle: Sdk, ram_path: Path) -> None:
    kaggle.push(SLUG, f"print(0, flush=True)\n{until(ram_path / 'go')}print(1)")
    url = f"http://localhost/api/v1/kernels/logs/stream/{USER}/{SLUG}?versionLabel=v1"
    kaggle.emulator.wait(lambda: kaggle.status(SLUG) == "RUNNING")
    key = (USER, kaggle.emulator.settings.key)
    with requests.get(url, auth=key, stream=True, timeout=PATIENCE_S) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        (ram_path / "go").touch()
        lines = [line.decode().removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "END_OF_LOG"
    assert [json.loads(line)["data"] for line in lines[:-1]] == ["0\n", "1\n"]
    kaggle.emulator.wait_for_session(SLUG)
    assert [line["data"] for line in requests.get(url, auth=key, timeout=PATIENCE_S).json()] == ["0\n", "1\n"]


def test_without_internet_a_session_reaches_nothing_but_itself(ram_path: Path) -> None:
    code = """
        import os, socket
        here = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(here.getsockname(), timeout=2)
        address = os.environ["http_proxy"].removeprefix("http://").split(":")
        try:
            socket.create_connection((address[0], int(address[1])), timeout=2)
        except OSError as error:
            print(type(error).__name__)
    """
    with connected(ram_path) as kaggle:
        kaggle.push(SLUG, code, enable_internet=False)
        assert said(kaggle) == "ConnectionRefusedError\n"


def test_the_token_of_a_session_ends_with_it(kaggle: Sdk) -> None:
    kaggle.push(SLUG, "print('x')")
    session = kaggle.emulator.wait_for_session(SLUG)
    url = "http://localhost/api/v1/datasets.DatasetApiService/ListDatasets"
    answer = requests.post(url, json={}, headers={"Authorization": f"Bearer {session.token}"}, timeout=PATIENCE_S)
    assert answer.status_code == 401


def test_tokens_in_sources_logs_and_outputs_are_found(kaggle: Sdk) -> None:
    code = "import os; t = open(os.environ['KAGGLE_API_V1_TOKEN']).read(); print(t); open('x.bin', 'w').write(t)"
    kaggle.push(SLUG, f"# {kaggle.emulator.settings.key}\n{code}")
    said(kaggle)
    places = {leak.place for leak in kaggle.emulator.leaks()}
    assert {
        f"source and metadata of {USER}/{SLUG} v1",
        f"log of {USER}/{SLUG} v1",
        f"output of {USER}/{SLUG} v1: x.bin",
    } <= places


def test_a_notebook_runs_its_code_cells_in_a_row(kaggle: Sdk) -> None:
    cells = [
        {"cell_type": "code", "source": ["n = 1\n"]},
        {"cell_type": "markdown", "source": "#"},
        {"cell_type": "code", "source": "print(n)"},
    ]
    kaggle.push(SLUG, json.dumps({"cells": cells}), kernel_type="notebook")
    assert said(kaggle) == "1\n"


def test_another_interpreter_may_run_the_scripts(ram_path: Path) -> None:
    with connected(ram_path, python=sys._base_executable) as kaggle:
        kaggle.push(SLUG, "import sys; print(sys.prefix == sys.base_prefix)")
        assert said(kaggle) == "True\n"


def test_a_slot_may_be_freed_late(ram_path: Path) -> None:
    with connected(ram_path, slot_release_s=1e6, max_cpu_sessions=1) as kaggle:
        kaggle.push(SLUG)
        said(kaggle)
        assert "session count" in kaggle.push(SLUG).error
        kaggle.emulator.clock.advance(1e6)
        assert kaggle.push(SLUG).error == ""
