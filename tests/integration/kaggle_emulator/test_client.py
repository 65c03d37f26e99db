"""The unmodified official client, its command and kagglehub against the emulator, by recipe A of the contract."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.kaggle_clients import USER, Sdk, connected, run_client, run_command, run_python, sdk
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S
from tests.repository import ROOT

RUNNING = {"timescale": 1.0, "processing_s": 0.05, "queue_s": 0.05}
"""The client is another process, and waits in real time."""
IMPATIENT = "import time; time.sleep = lambda seconds: None\n"
"""Put before the client's code, it retries without its pauses."""


@pytest.fixture
def kaggle(ram_path: Path) -> Iterator[Sdk]:
    with connected(ram_path, **RUNNING) as connection:
        yield connection


@pytest.fixture
def home(kaggle: Sdk, ram_path: Path) -> Path:
    return ram_path / "home"


def write(folder: Path, **files: str | dict[str, Any]) -> Path:
    """Write files; dictionaries as JSON under the name that the client wants."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
        else:
            (folder / name).write_text(content)
    return folder


def dataset_folder(folder: Path, **files: str) -> Path:
    metadata = {"id": f"{USER}/my-data-set", "title": "my-data-set", "licenses": [{"name": "CC0-1.0"}]}
    return write(folder, dataset_metadata=metadata, **files)


def kernel_folder(folder: Path, source: str, **metadata: Any) -> Path:
    base = {"id": f"{USER}/my-kernel", "title": "my-kernel", "code_file": "code", "language": "python", "kernel_type": "script"}
    return write(folder, kernel_metadata={**base, **metadata}, code=source)


def last(process: subprocess.CompletedProcess[str]) -> Any:
    """Read the JSON in the last line that the process printed."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_the_official_client_makes_reads_and_versions_a_dataset(kaggle: Sdk, home: Path) -> None:
    dataset_folder(home / "data", first="1", empty="")
    code = """
        import json, os, time
        api.dataset_create_new("data", quiet=True)
        while api.dataset_status("tester/my-data-set") != "ready":
            time.sleep(0.01)
        open("data/second", "w").write("22")
        api.dataset_create_version("data", "with a second file", quiet=True)
        while "2" not in api.dataset_status("tester/my-data-set", format="json"):
            time.sleep(0.01)
        listed = api.dataset_list_files("tester/my-data-set").files
        api.dataset_download_files("tester/my-data-set", path="whole", unzip=True)
        api.dataset_download_file("tester/my-data-set", "second", path="one")
        print(json.dumps([{f.name: f.total_bytes for f in listed}, sorted(os.listdir("whole")), open("one/second").read()]))
    """
    files, whole, one = last(run_client(kaggle.emulator, home, code))
    assert files == {"empty": 0, "first": 1, "second": 2}
    assert (whole, one) == (["empty", "first", "second"], "22")


def test_the_official_client_pushes_a_kernel_and_fetches_what_it_left(kaggle: Sdk, home: Path) -> None:
    kernel_folder(home / "kernel", "print('hello'); open('out.bin', 'w').write('weights')")
    code = """
        import json, time
        pushed = api.kernels_push("kernel", timeout="600", acc="NvidiaTeslaT4")
        statuses = []
        while "COMPLETE" not in statuses:
            statuses.append(api.kernels_status("tester/my-kernel").status.name)
            time.sleep(0.01)
        api.kernels_output("tester/my-kernel", "out")
        log = [line["data"] for line in api.kernels_logs_stream("tester/my-kernel")]
        quota = api.quota_view()
        used = quota.gpu_quota.time_used.total_seconds()
        listed = [kernel.ref for kernel in api.kernels_list(mine=True)]
        api.kernels_delete("tester/my-kernel", no_confirm=True)
        print(json.dumps([pushed.version_number, sorted(set(statuses)), open("out/out.bin").read(), log, used > 0, listed]))
    """
    version, statuses, out, log, used, listed = last(run_client(kaggle.emulator, home, code))
    assert (version, out, log, used, listed) == (1, "weights", ["hello\n"], True, [f"{USER}/my-kernel"])
    assert set(statuses) <= {"QUEUED", "RUNNING", "COMPLETE"}
    (session,) = kaggle.emulator.sessions.all()
    assert (session.limit_s, session.shape) == (600, "NvidiaTeslaT4")


def test_the_log_of_a_running_kernel_is_followed(kaggle: Sdk, home: Path) -> None:
    kaggle.push("my-kernel", "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.15)")
    code = "import json; print(json.dumps([line['data'] for line in api.kernels_logs_stream('tester/my-kernel')]))"
    kaggle.emulator.wait(lambda: kaggle.status("my-kernel") == "RUNNING")
    assert last(run_client(kaggle.emulator, home, code)) == ["0\n", "1\n", "2\n"]


def test_the_command_says_what_the_emulator_says(kaggle: Sdk, home: Path) -> None:
    kernel_folder(home / "kernel", "pass")
    kaggle.emulator.faults.add(Fault("SaveKernel", "refuse", value="Maximum weekly GPU quota of 30.00 hours reached."))
    refused = run_command(kaggle.emulator, home, "kernels", "push", "-p", "kernel")
    assert (refused.returncode, "Maximum weekly GPU quota" in refused.stdout) == (0, True)


def test_a_token_is_introspected_and_then_used(kaggle: Sdk, home: Path) -> None:
    code = "import json; print(json.dumps([api.config_values['username'], str(api.config_values['auth_method'])]))"
    user, _ = last(run_client(kaggle.emulator, home, code, credentials="token"))
    assert user == USER
    (asked, *_) = kaggle.emulator.journal.of("IntrospectToken")
    assert asked.status == 200
    assert kaggle.emulator.leaks() == []


def test_an_upload_that_breaks_off_is_resumed_by_the_official_client(kaggle: Sdk, home: Path) -> None:
    kaggle.create_dataset("my-data-set", {"a": b"1"})
    dataset_folder(home / "data", weights="w" * 2_000_000)
    kaggle.emulator.faults.add(Fault("BlobPut", "drop_body", calls={1}, after_bytes=600_000))
    run_client(kaggle.emulator, home, "api.dataset_create_version('data', 'two', quiet=True)")
    kaggle.emulator.wait(lambda: kaggle.files("my-data-set") == {"weights": 2_000_000})


def test_a_lost_answer_to_a_new_version_makes_the_official_client_send_it_twice(kaggle: Sdk, home: Path) -> None:
    kaggle.create_dataset("my-data-set", {"a": b"1"})
    dataset_folder(home / "data", weights="w")
    kaggle.emulator.faults.add(Fault("CreateDatasetVersion", "drop_after", calls={1}))
    run_client(kaggle.emulator, home, f"{IMPATIENT}api.dataset_create_version('data', 'two', quiet=True)")
    kaggle.emulator.wait(lambda: kaggle.dataset("my-data-set").current_version_number == 3)


def test_a_download_that_breaks_off_is_resumed_by_the_official_client(kaggle: Sdk, home: Path) -> None:
    kaggle.create_dataset("my-data-set", {"weights": b"w" * 3_000_000})
    kaggle.emulator.faults.add(Fault("Download", "truncate", calls={1}))
    code = f"{IMPATIENT}api.dataset_download_file('tester/my-data-set', 'weights', path='one')"
    assert run_client(kaggle.emulator, home, code).returncode == 0
    assert (home / "one" / "weights").stat().st_size == 3_000_000
    assert [entry.status for entry in kaggle.emulator.journal.of("Download")] == [200, 206]


def test_a_refresh_token_buys_an_access_token_that_ends(kaggle: Sdk, ram_path: Path) -> None:
    refresh = kaggle.emulator.accounts.issue_refresh_token(USER)
    url = "http://localhost/api/v1/users.AccountService/GenerateAccessToken"
    bought = requests.post(url, json={"refreshToken": refresh, "expirationDuration": "3600s"}, timeout=PATIENCE_S).json()
    assert (bought["expiresIn"], bought["userName"]) == (3600, USER)
    kaggle.create_dataset("my-data-set", {"a": b"1"})
    with sdk(kaggle.emulator, ram_path, api_token=bought["token"]) as by_token:
        assert by_token.dataset_status("my-data-set") == "READY"
        kaggle.emulator.clock.advance(3601)
        with pytest.raises(requests.HTTPError) as refused:
            by_token.dataset_status("my-data-set")
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("credentials", [{"username": USER, "password": "wrong"}, {"api_token": "KGAT_wrong"}, {"username": ""}])
def test_bad_and_missing_credentials_are_refused(kaggle: Sdk, ram_path: Path, credentials: dict[str, str]) -> None:
    with sdk(kaggle.emulator, ram_path, **credentials) as stranger, pytest.raises(requests.HTTPError) as refused:
        stranger.dataset_status("my-data-set")
    assert refused.value.response.status_code == 401


def test_an_unknown_token_is_not_introspected(kaggle: Sdk) -> None:
    url = "http://localhost/api/v1/security.OAuthService/IntrospectToken"
    assert requests.post(url, json={"token": "KGAT_wrong"}, timeout=PATIENCE_S).status_code == 403


def test_inside_a_session_the_clients_use_its_token_and_a_version_can_be_made(kaggle: Sdk) -> None:
    kaggle.create_dataset("my-data-set", {"a": b"1"})
    code = """
        import json, os
        from kaggle.api.kaggle_api_extended import KaggleApi
        api = KaggleApi()
        api.authenticate()
        os.mkdir("up")
        metadata = {"id": "tester/my-data-set", "title": "my-data-set", "licenses": [{"name": "CC0-1.0"}]}
        json.dump(metadata, open("up/dataset-metadata.json", "w"))
        open("up/ckpt.bin", "w").write("state")
        api.dataset_create_version("up", "from the session", quiet=True)
    """
    kaggle.push("my-kernel", code)
    session = kaggle.emulator.wait_for_session("my-kernel")
    assert session.outcome == "COMPLETE", session.log
    kaggle.emulator.wait(lambda: kaggle.files("my-data-set") == {"ckpt.bin": 5})
    (made,) = kaggle.emulator.journal.of("CreateDatasetVersion")
    assert (made.user, made.session) == (USER, session.id)


def test_the_token_of_a_session_may_be_one_that_cannot_write(ram_path: Path) -> None:
    with connected(ram_path, **RUNNING, session_token_can_write=False) as kaggle:
        code = """
            import os, urllib.error, urllib.request
            headers = {"Authorization": "Bearer " + open(os.environ["KAGGLE_API_V1_TOKEN"]).read()}
            for method in ("ListDatasets", "StartBlobUpload"):
                request = urllib.request.Request("http://localhost/api/v1/some.Service/" + method, b"{}", headers)
                try:
                    print(urllib.request.urlopen(request).status)
                except urllib.error.HTTPError as error:
                    print(error.code)
        """
        kaggle.push("my-kernel", code)
        assert [line["data"] for line in kaggle.emulator.wait_for_session("my-kernel").log] == ["200\n", "403\n"]


def test_kagglehub_uploads_and_downloads_from_the_users_machine(kaggle: Sdk, home: Path) -> None:
    write(home / "data", first="1", second="22")
    code = """
        import json, os, time
        import kagglehub
        kagglehub.dataset_upload("tester/my-data-set", "data", version_notes="hub")
        time.sleep(0.1)
        path = kagglehub.dataset_download("tester/my-data-set/versions/1", path="second")
        print(json.dumps([kagglehub.whoami()["username"], open(path).read()]))
    """
    assert last(run_python(kaggle.emulator, home, code)) == [USER, "22"]


def test_kagglehub_inside_a_session_gets_its_dataset_mounted(kaggle: Sdk) -> None:
    kaggle.create_dataset("my-data-set", {"a": b"1"})
    code = "import kagglehub; print(kagglehub.dataset_download('tester/my-data-set'))"
    kaggle.push("my-kernel", code)
    session = kaggle.emulator.wait_for_session("my-kernel")
    assert any(line["data"].endswith("/input/datasets/tester/my-data-set\n") for line in session.log), session.log
    assert session.mounted == {f"{USER}/my-data-set": 1}


def test_a_user_secret_is_never_there(kaggle: Sdk) -> None:
    code = """
        import json, os, urllib.error, urllib.request
        headers = {"X-Kaggle-Authorization": "Bearer " + os.environ["KAGGLE_USER_SECRETS_TOKEN"]}
        url = os.environ["KAGGLE_URL_BASE"] + "/requests/GetUserSecretByLabelRequest"
        try:
            urllib.request.urlopen(urllib.request.Request(url, json.dumps({"Label": "KEY"}).encode(), headers))
        except urllib.error.HTTPError as error:
            print(error.code, json.load(error)["error"]["message"])
    """
    kaggle.push("my-kernel", code)
    (line,) = kaggle.emulator.wait_for_session("my-kernel").log
    assert line["data"].startswith("404 No user secrets exist")


def test_the_emulator_starts_by_hand_and_says_how_to_reach_it(ram_path: Path) -> None:
    options = ["--state", str(ram_path / "state"), "--timescale", "3600", "--no-phone-verified", "--mount-layout", "old"]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kaggle_emulator", *options], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1].startswith("export "):
            lines.append(process.stdout.readline())
        said = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines[:-1])
        clock = requests.get(f"{said['http_proxy']}/__emulator__/clock", timeout=PATIENCE_S).json()
        process.terminate()
        assert process.wait(10) == 0
    assert clock["timescale"] == 3600
    assert said["KAGGLE_API_ENVIRONMENT"] == "LOCALHOST"
    assert lines[-1].startswith("# admin: http://127.0.0.1:")


def test_the_api_is_found_without_a_proxy_too_and_by_its_production_path(kaggle: Sdk) -> None:
    with requests.Session() as direct:
        direct.trust_env = False
        for path in ("/v1", "/api/v1"):
            url = f"{kaggle.emulator.url}{path}/api.v1.DiagnosticsService/Hello"
            assert direct.post(url, auth=(USER, kaggle.emulator.settings.key), timeout=PATIENCE_S).json() == {"userName": USER}
        unknown = direct.post(
            f"{kaggle.emulator.url}/v1/some.Service/Nonsense", auth=(USER, kaggle.emulator.settings.key), timeout=PATIENCE_S
        )
        assert unknown.status_code == 404


def test_the_date_and_the_newest_client_are_told(ram_path: Path) -> None:
    with connected(ram_path, api_version="99.0.0") as kaggle:
        answer = requests.post("http://localhost/api/v1/x.Y/Hello", auth=(USER, kaggle.emulator.settings.key), timeout=PATIENCE_S)
        assert (answer.headers["Date"][:16], answer.headers["X-Kaggle-APIVersion"]) == ("Mon, 23 Nov 2026", "99.0.0")
