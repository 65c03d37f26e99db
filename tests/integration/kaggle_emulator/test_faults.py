"""Each fault does to a call what its name says, and nothing more (contract 3.0, 4, 7)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from kagglesdk.kernels.types.kernels_api_service import ApiListKernelsRequest

from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S

SLUG = "train-s1"


@pytest.fixture
def kaggle(ram_path: Path) -> Iterator[Sdk]:
    with connected(ram_path, queue_s=1e12) as connection:
        yield connection


def versions(kaggle: Sdk) -> int:
    """Give how many versions of the kernel there really are."""
    return sum(len(kernel.versions) for kernel in kaggle.emulator.kernels.all())


def post(kaggle: Sdk, method: str, body: object, timeout: float = 5.0) -> requests.Response:
    """Call without the SDK, with a timeout."""
    key = (USER, kaggle.emulator.settings.key)
    return requests.post(f"http://localhost/api/v1/some.Service/{method}", json=body, auth=key, timeout=timeout)


def test_a_page_of_html_instead_of_an_answer(kaggle: Sdk) -> None:
    kaggle.emulator.faults.add(
        Fault("SaveKernel", "status", status=429, html=True, retry_after="30", message="Too many requests")
    )
    with pytest.raises(requests.HTTPError) as refused:
        kaggle.push(SLUG)
    response = refused.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (429, "30")
    assert "Too many requests" in response.text
    assert "text/html" in response.headers["Content-Type"]
    assert versions(kaggle) == 0


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_before_or_after_the_effect(kaggle: Sdk, status: int) -> None:
    kaggle.emulator.faults.add(Fault("SaveKernel", "status", calls={1}, status=status))
    kaggle.emulator.faults.add(Fault("SaveKernel", "status_after", calls={2}, status=status))
    for effects in (0, 1):
        with pytest.raises(requests.HTTPError) as refused:
            kaggle.push(SLUG)
        assert refused.value.response.status_code == status
        assert refused.value.response.json()["error"]["code"] == status
        assert versions(kaggle) == effects


def test_errors_can_have_the_flat_format_that_the_client_reads(ram_path: Path) -> None:
    with connected(ram_path, error_format="flat") as kaggle, pytest.raises(requests.HTTPError, match="was denied"):
        kaggle.dataset("nothing-here")


def test_a_connection_that_breaks_before_or_after_the_effect(kaggle: Sdk) -> None:
    kaggle.emulator.faults.add(Fault("SaveKernel", "drop_before", calls={1}), Fault("SaveKernel", "drop_after", calls={2}))
    for effects in (0, 1):
        with pytest.raises(requests.ConnectionError):
            kaggle.push(SLUG)
        assert versions(kaggle) == effects
    assert kaggle.push(SLUG).version_number == 2


@pytest.mark.parametrize(("kind", "effects"), [("hang_before", 0), ("hang_after", 1)])
def test_a_call_that_never_answers_before_or_after_the_effect(kaggle: Sdk, kind: str, effects: int) -> None:
    kaggle.emulator.faults.add(Fault("SaveKernel", kind))
    body = {"slug": f"{USER}/{SLUG}", "newTitle": SLUG, "text": "", "language": "python", "kernelType": "script"}
    with pytest.raises(requests.ReadTimeout):
        post(kaggle, "SaveKernel", body, timeout=0.2)
    kaggle.emulator.wait(lambda: versions(kaggle) == effects)


def test_a_late_answer(kaggle: Sdk) -> None:
    kaggle.emulator.faults.add(Fault("ListKernels", "delay", seconds=0.1))
    started = time.monotonic()
    kaggle.kernels.list_kernels(ApiListKernelsRequest())
    assert time.monotonic() - started >= 0.1


def test_an_answer_that_breaks_off_with_and_without_a_trace(kaggle: Sdk) -> None:
    kaggle.push(SLUG)
    kaggle.emulator.faults.add(Fault("GetKernel", "truncate", calls={1}), Fault("GetKernel", "short_body", calls={2}))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        kaggle.kernel(SLUG)
    with pytest.raises(requests.exceptions.JSONDecodeError):
        kaggle.kernel(SLUG)


def test_a_success_that_is_a_lie(kaggle: Sdk) -> None:
    kaggle.emulator.faults.add(
        Fault("SaveKernel", "lie", calls={1}), Fault("SaveKernel", "lie", calls={2}, body={"versionNumber": 7})
    )
    assert (kaggle.push(SLUG).version_number, kaggle.push(SLUG).version_number) == (1, 7)
    assert versions(kaggle) == 0
    kaggle.emulator.faults.add(Fault("BlobPut", "lie"))
    token = kaggle.upload("a.bin", b"data")
    blob = kaggle.emulator.blobs.find(token)
    assert blob is not None
    assert not blob.complete


def test_an_answer_with_a_field_that_nobody_expects(kaggle: Sdk) -> None:
    kaggle.push(SLUG)
    kaggle.emulator.faults.add(Fault("GetKernelSessionStatus", "rewrite", body={"status": "HIBERNATING"}))
    with pytest.raises(KeyError):
        kaggle.status(SLUG)


def test_a_read_that_is_behind_says_what_was_true_and_has_not_heard_of_what_is_new(kaggle: Sdk) -> None:
    clock = kaggle.emulator.clock
    kaggle.create_dataset("my-data", {"a.bin": b"1"})
    clock.advance(600)
    kaggle.new_version("my-data", {"a.bin": b"22"})
    kaggle.push(SLUG)
    stale = Fault("*", "lag", seconds=300)
    kaggle.emulator.faults.add(stale)
    assert (kaggle.dataset("my-data").current_version_number, kaggle.files("my-data")) == (1, {"a.bin": 1})
    for ask in (lambda: kaggle.status(SLUG), lambda: kaggle.status(SLUG, "v1"), lambda: kaggle.kernel(SLUG)):
        with pytest.raises(requests.HTTPError):
            ask()
    clock.advance(300)
    assert (kaggle.dataset("my-data").current_version_number, kaggle.status(SLUG)) == (2, "QUEUED")


def test_the_lag_after_a_creation_hides_only_the_newest_version(kaggle: Sdk) -> None:
    kaggle.push(SLUG)
    kaggle.emulator.clock.advance(600)
    kaggle.push(SLUG)
    kaggle.emulator.faults.add(Fault("GetKernel*", "lag", seconds=300))
    kernel = kaggle.kernel(SLUG).metadata
    assert kernel is not None
    assert kernel.current_version_number == 1
    with pytest.raises(requests.HTTPError) as unknown:
        kaggle.status(SLUG, "v2")
    assert unknown.value.response.status_code == 404


def test_rules_choose_calls_by_number_by_field_by_actor_by_time_and_by_anything(kaggle: Sdk) -> None:
    kaggle.push(SLUG)
    kaggle.push("other-work")
    plan, clock = kaggle.emulator.faults, kaggle.emulator.clock

    def outcomes(*slugs: str) -> str:
        said = ""
        for slug in slugs:
            response = post(kaggle, "GetKernelSessionStatus", {"userName": USER, "kernelSlug": slug})
            said += "." if response.ok else "x"
        return said

    for fault, expected in (
        (Fault("GetKernelSessionStatus", "status", calls={2, 3}), ".xx."),
        (Fault("Get*", "status", match={"kernelSlug": "train-*"}), "xxxx"),
        (Fault("Get*", "status", match={"kernelSlug": "other-*"}), "...."),
        (Fault("*", "status", actor="session"), "...."),
        (Fault("*", "status", actor="user", when=lambda call: call.text("kernelSlug") == SLUG, calls=range(3, 99)), "..xx"),
    ):
        plan.add(fault)
        assert outcomes(SLUG, SLUG, SLUG, SLUG) == expected
        assert plan.hits(fault) == expected.count("x")
        plan.remove(fault)
    plan.add(Fault("GetKernelSessionStatus", "status", for_s=20 * 60))
    before = outcomes(SLUG)
    clock.advance(21 * 60)
    assert before + outcomes(SLUG) == "x."


def test_a_download_can_break_off_and_be_resumed(kaggle: Sdk) -> None:
    data = bytes(range(256)) * 1000
    kaggle.create_dataset("my-data", {"a.bin": data})
    url = kaggle.download("my-data", "a.bin").url
    kaggle.emulator.faults.add(Fault("Download", "truncate", calls={1}), Fault("Download", "status", calls={3}, status=503))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, timeout=PATIENCE_S)
    rest = requests.get(url, headers={"Range": f"bytes={len(data) // 2}-"}, timeout=PATIENCE_S)
    assert rest.content == data[len(data) // 2 :]
    assert requests.get(url, timeout=PATIENCE_S).status_code == 503


def test_an_upload_can_be_refused_in_the_middle_of_its_body_and_the_sender_hears_why(kaggle: Sdk) -> None:
    _, url = kaggle.start_upload("a.bin", 8 * 1024**2)
    kaggle.emulator.faults.add(Fault("BlobPut", "status", calls={1}, status=503))
    assert requests.put(url, data=bytes(8 * 1024**2), timeout=PATIENCE_S).status_code == 503
    assert requests.put(url, data=bytes(8 * 1024**2), timeout=PATIENCE_S).status_code == 200


def test_what_would_leave_the_emulator_is_stopped_and_noted(kaggle: Sdk) -> None:
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://api.kaggle.com/v1/x", timeout=PATIENCE_S)
    assert requests.get("http://example.com/", timeout=PATIENCE_S).status_code == 502
    escapes = kaggle.emulator.journal.escapes
    assert [entry.target for entry in escapes] == ["api.kaggle.com:443", "http://example.com/"]
    kaggle.emulator.journal.entries.clear()


def test_the_journal_knows_every_call_and_no_secret(kaggle: Sdk) -> None:
    kaggle.push(SLUG)
    kaggle.create_dataset("my-data", {"a.bin": b"123"})
    journal = kaggle.emulator.journal
    assert journal.routes() == ["SaveKernel", "StartBlobUpload", "BlobPut", "CreateDataset"]
    (pushed,) = journal.of("SaveKernel")
    assert (pushed.method, pushed.status, pushed.user, pushed.session) == ("POST", 200, USER, None)
    assert pushed.effect == f"made version 1 of kernel {USER}/{SLUG}, session 1"
    assert pushed.headers["Authorization"] == "Basic [redacted]"
    assert journal.of("BlobPut")[0].body_size == 3
    assert not any(entry.leaked_authorization for entry in journal.of())
    kaggle.emulator.wait(lambda: all(entry.done for entry in journal.of()))
    lines = [json.loads(line) for line in (kaggle.emulator.folder / "requests.jsonl").read_text().splitlines()]
    assert [line["route"] for line in lines] == journal.routes()
    assert kaggle.emulator.leaks() == []


def test_a_credential_that_is_sent_to_the_storage_host_is_noted(kaggle: Sdk) -> None:
    kaggle.create_dataset("my-data", {"a.bin": b"123"})
    url = kaggle.download("my-data", "a.bin").url
    requests.get(url, auth=(USER, "key"), timeout=PATIENCE_S)
    assert [entry.leaked_authorization for entry in kaggle.emulator.journal.of("Download")] == [False, True]


def test_calls_per_minute_are_counted_in_the_emulators_time(kaggle: Sdk) -> None:
    clock = kaggle.emulator.clock
    start = clock.now()
    for pause_s in (60, 61, 10, 300):
        kaggle.kernels.list_kernels(ApiListKernelsRequest())
        clock.advance(pause_s)
    assert kaggle.emulator.journal.busiest_minute() == 2
    assert kaggle.emulator.journal.busiest_minute(session=1) == 0
    assert kaggle.emulator.journal.calls_per_minute(since=start, until=start + 480) == 0.5


def test_a_backlog_of_clients_is_no_trouble(kaggle: Sdk) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: post(kaggle, "ListKernels", {}).status_code, range(160)))
    assert answers == [200] * 160


def test_the_plan_can_be_changed_by_hand_over_the_admin_routes(kaggle: Sdk) -> None:
    admin = f"{kaggle.emulator.url}/__emulator__"
    rule = {"route": "SaveKernel", "kind": "status", "status": 500, "calls": [1]}
    assert requests.post(f"{admin}/faults", json=rule, timeout=PATIENCE_S).json()[0]["kind"] == "status"
    with pytest.raises(requests.HTTPError):
        kaggle.push(SLUG)
    assert requests.get(f"{admin}/faults", timeout=PATIENCE_S).json()[0]["hit"] == 1
    assert requests.delete(f"{admin}/faults", timeout=PATIENCE_S).json() == []
    kaggle.push(SLUG)
    assert requests.get(f"{admin}/sessions", timeout=PATIENCE_S).json()[0]["status"] == "QUEUED"
    before = kaggle.emulator.clock.now()
    requests.post(f"{admin}/clock", json={"advance_s": 3600}, timeout=PATIENCE_S)
    requests.post(f"{admin}/quota", json={"used_s": 108_000}, timeout=PATIENCE_S)
    assert kaggle.emulator.clock.now() >= before + 3600
    assert "quota" in kaggle.push("other-one", machine_shape="NvidiaTeslaT4").error
    assert (
        requests.get(f"{admin}/escapes", timeout=PATIENCE_S).json()
        == requests.get(f"{admin}/leaks", timeout=PATIENCE_S).json()
        == []
    )
    wrong = requests.post(f"{admin}/faults", json={"route": "*", "kind": "earthquake"}, timeout=PATIENCE_S)
    assert (wrong.status_code, "no fault is called" in wrong.json()["error"]) == (400, True)
    assert requests.get(f"{admin}/weather", timeout=PATIENCE_S).status_code == 404
