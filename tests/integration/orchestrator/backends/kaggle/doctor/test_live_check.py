from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.backends.kaggle.doctor.doctor import examine_kaggle
from orchestrator.backends.kaggle.doctor.live_check import (
    FACTS,
    EndedSession,
    Evidence,
    judge,
    kernel_source,
    measure,
)
from orchestrator.backends.kaggle.doctor.probe_dataset import WrittenCanary, write_canary
from orchestrator.ports import Finding
from state.kaggle.names import CANARY_SLUG, FACTS_KERNEL, LIMIT_KERNEL
from state.kaggle.records import DatasetInfo, KernelInfo
from state.layout import HomeLayout
from tests.kaggle_accounts import Account, PatientTime, account
from tests.kaggle_emulator.faults import Fault
from tests.patience import wait_until

OLD, NEW = WrittenCanary("old", 3, 60.0), WrittenCanary("new", 4, 90.0)
SESSION: dict[str, Any] = {
    "python": "3.12.1",
    "cores": 4,
    "memory_bytes": 30 * 10**9,
    "devices": [],
    "packages": {"torch": "2.10.0"},
    "mounted": [{"path": "/kaggle/input/datasets/me/gemma-orch-canary/canary.json", "nonce": "new"}],
    "upload": {"error": ""},
}
GOOD = Evidence(
    canaries=(OLD, NEW),
    pinned=3,
    session=SESSION,
    limit=EndedSession("cancelled", "LIVE-CHECK waiting\n", ()),
    uploaded=WrittenCanary("session", 5, 40.0),
    kernel=KernelInfo(FACTS_KERNEL, 1, "None", None, None),
    pushed_version=1,
    dataset=DatasetInfo("gemma-orch-canary", 5, 90, True, ()),
    current_bytes=90,
    num_calls=20,
    calls_s=2.0,
    collision="the name is in use by a dataset",
)


def judged(evidence: Evidence) -> dict[str, Finding]:
    return {finding.subject.partition(": ")[2]: finding for finding in judge(evidence)}


def test_there_are_eleven_facts_each_with_what_is_assumed_how_it_is_measured_and_what_follows() -> None:
    assert len(FACTS) == 11
    assert len({fact.subject for fact in FACTS}) == 11
    assert all(fact.assumed and fact.measured and fact.otherwise for fact in FACTS)


def test_a_kaggle_as_assumed_confirms_every_fact() -> None:
    found = judged(GOOD)
    assert all(finding.ok for finding in found.values())
    assert "the session made version 5 of gemma-orch-canary" in found["session token"].found
    assert "does not pin" in found["owner/slug/N as a source"].found
    assert "its files are lost" in found["outputs after the limit"].found
    assert "100 ms each, none refused" in found["API rate"].found


def test_what_is_otherwise_is_told_with_what_follows() -> None:
    denied = {**SESSION, "upload": {"error": "HTTP 403: no"}, "mounted": [], "devices": ["GPU 0: Tesla T4"]}
    cases = {
        "session token": (replace(GOOD, session=denied), "refused: HTTP 403", False),
        "SIGTERM": (
            replace(GOOD, limit=EndedSession("cancelled", "LIVE-CHECK signal 15 after 118.0\n", ())),
            "a signal came: signal 15 after 118.0 s",
            True,
        ),
        "outputs after the limit": (replace(GOOD, limit=EndedSession("cancelled", "", ("kept.txt",))), "are kept", True),
        "processing time": (replace(GOOD, canaries=(replace(NEW, ready_after_s=4000.0),)), "1h06m", False),
        "owner/slug/N as a source": (
            replace(GOOD, session={**SESSION, "mounted": [{"path": "x", "nonce": "old"}]}),
            "version 3 was mounted: it pins",
            True,
        ),
        "mount layout": (replace(GOOD, session=denied), "was not mounted", False),
        "machine given": (replace(GOOD, session=denied), "1 GPUs", False),
        "slug": (replace(GOOD, kernel=None), "is not found", False),
        "API rate": (replace(GOOD, refused="HTTP 429"), "then HTTP 429", False),
        "one namespace": (replace(GOOD, collision=""), "Kaggle accepted a kernel with the dataset's name", True),
    }
    for subject, (evidence, said, ok) in cases.items():
        finding = judged(evidence)[subject]
        assert (said in finding.found, finding.ok, finding.remedy is None) == (True, ok, ok), finding
    assert "no version appeared" in judged(replace(GOOD, uploaded=None))["session token"].found
    assert "is refused" in judged(replace(GOOD, pin_refused="no such source"))["owner/slug/N as a source"].found
    assert "only one version" in judged(replace(GOOD, pinned=None))["owner/slug/N as a source"].found
    lost = judged(replace(GOOD, session=denied))["owner/slug/N as a source"]
    assert (lost.ok, "nothing was mounted" in lost.found) == (False, True)


def test_what_could_not_be_measured_is_said_and_is_no_failure() -> None:
    found = judged(Evidence(trouble={"session": "the push was refused", "limit": "still queued"}))
    assert all(finding.ok and "not measured" in finding.found for finding in found.values())
    assert "the push was refused" in found["session token"].found
    assert "still queued" in found["SIGTERM"].found


def test_the_pushed_script_is_small_and_has_no_secret(tmp_path: Path) -> None:
    source = kernel_source({"mode": "limit", "kept": "a.txt"})
    assert len(source) < 20_000
    compile(source, "canary", "exec")


def live(tmp_path: Path, user: Account) -> dict[str, Finding]:
    environment = user.emulator.client_environment(user.home)
    clock = PatientTime(user.emulator, endless=LIMIT_KERNEL)
    findings = examine_kaggle(environment, HomeLayout(tmp_path / "home"), print, live_check=True, clock=clock)
    return {finding.subject.rpartition(": ")[2]: finding for finding in findings}


QUICK = {"processing_s": 20.0, "queue_s": 5.0}


def test_every_fact_is_measured_on_an_account_and_nothing_leaks(tmp_path: Path) -> None:
    with account(tmp_path, **QUICK) as user:
        found = live(tmp_path, user)
        assert all(finding.ok for finding in found.values()), found
        assert not any("not measured" in finding.found for finding in found.values())
        assert "a kernel with internet was accepted" in found["phone verified"].found
        assert "/kaggle/input/datasets/tester/gemma-orch-canary/canary.json" in found["mount layout"].found
        assert "it does not pin" in found["owner/slug/N as a source"].found
        assert "ended as cancelled; its files are lost" in found["outputs after the limit"].found
        assert "no signal came" in found["SIGTERM"].found
        assert "already in use by a dataset" in found["one namespace"].found
        assert user.emulator.sessions.max_live() == 2


def test_another_kaggle_is_measured_as_it_is(tmp_path: Path) -> None:
    settings = {
        "session_token_can_write": False,
        "pin_dataset_versions": True,
        "cancelled_outputs_kept": True,
        "sigterm_grace_s": 20.0,
        "one_namespace": False,
    }
    with account(tmp_path, **QUICK, **settings) as user:
        found = live(tmp_path, user)
        assert not found["session token"].ok
        assert "kernel-output mode" in (found["session token"].remedy or "")
        assert "it pins" in found["owner/slug/N as a source"].found
        assert "its files are kept" in found["outputs after the limit"].found
        assert "a signal came: signal 15" in found["SIGTERM"].found
        assert "it was deleted again" in found["one namespace"].found
        assert user.api.kernel(CANARY_SLUG) is None


def test_a_phone_that_is_not_verified_is_found_out(tmp_path: Path) -> None:
    with account(tmp_path, phone_verified=False) as user:
        found = live(tmp_path, user)
        assert not found["phone verified"].ok
        assert "https://www.kaggle.com/settings" in (found["phone verified"].remedy or "")
        assert "not measured" in found["session token"].found


def test_a_source_with_a_version_that_is_refused_is_named_without_it(tmp_path: Path) -> None:
    with account(tmp_path, **QUICK) as user:
        user.emulator.faults.add(
            Fault("SaveKernel", "rewrite", calls={1}, body={"invalidDatasetSources": ["tester/gemma-orch-canary/1"]})
        )
        canaries = tuple(write_canary(user.api, user.clock, tmp_path / "resume", limit_s=300) for _ in range(2))
        evidence = measure(user.api, PatientTime(user.emulator, endless=LIMIT_KERNEL), print, canaries)
        assert "gemma-orch-canary/1" in evidence.pin_refused
        assert evidence.session is not None
        assert evidence.session["mounted"][0]["nonce"] == canaries[1].nonce


def test_a_session_that_stays_queued_is_given_up(tmp_path: Path) -> None:
    with account(tmp_path, queue_s=10_000.0) as user:
        canaries = (write_canary(user.api, user.clock, tmp_path / "resume", limit_s=300),)
        evidence = measure(user.api, user.clock, print, canaries)
        assert f"{FACTS_KERNEL} version 1 is still queued" in evidence.trouble["session"]
        assert LIMIT_KERNEL in evidence.trouble["limit"]


def test_the_command_measures_live(tmp_path: Path) -> None:
    running = {"processing_s": 0.1, "queue_s": 0.1, "timescale": 1.0, "start_at": datetime.now(UTC)}
    with account(tmp_path, **running) as user, ThreadPoolExecutor() as pool:
        typed = pool.submit(user.type, "doctor", "--backend", "kaggle", "--live-check", "--json")
        emulator = user.emulator
        wait_until(lambda: {FACTS_KERNEL, LIMIT_KERNEL} <= {session.slug for session in emulator.sessions.all() if session.log})
        emulator.let_sessions_act(endless=LIMIT_KERNEL)
        emulator.clock.advance(emulator.sessions.all()[-1].limit_s)
        found = {finding["subject"]: finding for finding in json.loads(typed.result().stdout)}
        assert len([subject for subject in found if subject.startswith("fact ")]) == 11
        assert "it does not pin" in found["fact 5: owner/slug/N as a source"]["found"]
