"""Check the connection to Kaggle and the account; each finding comes with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from orchestrator.backends.kaggle.account import open_account, user_home
from orchestrator.backends.kaggle.doctor.probe_dataset import WrittenCanary, write_canary
from orchestrator.ports import Finding
from state.clock import Clock, SystemClock
from state.errors import GemmaOrchError, UserError
from state.kaggle.names import CANARY_SLUG
from state.layout import HomeLayout
from state.quantities import format_duration

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.doctor.live_check import Evidence
    from state.kaggle.api import KaggleApi
    from state.kaggle.records import AcceleratorQuota

_NEEDED = ("kagglesdk", "requests")
_LARGEST_SKEW_S = 60.0  # leases, quota refreshes and timeouts are compared to the minute
_CANARY_LIMIT_S = 900.0
_VERIFY_PHONE = "verify your phone number at https://www.kaggle.com/settings: kernels get neither internet nor GPU without it"

Say = Callable[[str], None]


def examine_kaggle(
    environment: Mapping[str, str], home: HomeLayout, say: Say, *, live_check: bool, clock: Clock | None = None
) -> tuple[Finding, ...]:
    """Check everything that a run on Kaggle needs; skip checks that depend on a failed one.

    Args:
        environment: Environment variables of the command.
        home: The home, for the state of resumable uploads.
        say: Receives a message before each slow step.
        live_check: Whether to push two short CPU kernels that measure Kaggle's behaviour.
        clock: None for the system's clock.
    """
    versions = _versions()
    credentials = _credentials(environment)
    if not all(finding.ok for finding in (*versions, credentials)):
        return (*versions, credentials)
    api = open_account(environment)
    account = _account(api)
    if not account.ok:
        return (*versions, credentials, account)
    credentials = _credentials(environment, api.source)
    return (*versions, credentials, account, *_Examination(api, home, say, clock or SystemClock()).run(live_check=live_check))


def _versions() -> tuple[Finding, ...]:
    needed = tuple(_version(name, is_needed=True) for name in _NEEDED)
    return (*needed, _version("kaggle", is_needed=False))


def _version(name: str, *, is_needed: bool) -> Finding:
    if importlib.util.find_spec(name) is not None:
        note = "" if is_needed else ", which gemma-orch does not use"
        return Finding(subject=name, found=importlib.metadata.version(name) + note, ok=True)
    if is_needed:
        return Finding(subject=name, found="not installed", ok=False, remedy="install gemma-orch again, as the README shows")
    return Finding(subject=name, found="not installed; gemma-orch does not need it", ok=True)


def _credentials(environment: Mapping[str, str], used: str | None = None) -> Finding:
    """List all credentials and the one in use: the official client's choice, until `used` names the one that Kaggle accepted."""
    from state.kaggle.credentials import describe_sources, find_credentials

    subject = "kaggle credentials"
    try:
        find_credentials(environment, user_home(environment))
        sources = describe_sources(environment, user_home(environment))
    except UserError as error:
        return Finding(subject=subject, found=error.what, ok=False, remedy=error.remedy)
    used = used or sources[0].name
    named, spoiled = [], None
    for source in sources:
        note = "used" if source.name == used else "not used"
        if source.is_chosen and source.name != used:
            note, spoiled = "not used: Kaggle does not accept it", source.name
        named.append(f"{source.name}{f' of {source.user}' if source.user else ''} ({note})")
    remedy = f"renew or remove {spoiled}: the official client would still send it" if spoiled is not None else None
    return Finding(subject=subject, found=", ".join(named), ok=True, remedy=remedy)


def _account(api: KaggleApi) -> Finding:
    try:
        api.quota()  # a key names its user, but only a call shows whether Kaggle accepts it
        return Finding(subject="kaggle account", found=api.user, ok=True)
    except GemmaOrchError as error:
        return _failed("kaggle account", error, "check that this machine can reach https://www.kaggle.com, then retry")


class _Examination:
    """Checks an account whose credentials work."""

    def __init__(self, api: KaggleApi, home: HomeLayout, say: Say, clock: Clock) -> None:
        self._api = api
        self._resume_dir = home.cache / "kaggle"
        self._say = say
        self._clock = clock
        self._canaries: tuple[WrittenCanary, ...] = ()

    def run(self, *, live_check: bool) -> tuple[Finding, ...]:
        first = (self._time(), self._quota(), self._canary())
        if not live_check:
            return (*first, self._phone(None))
        from orchestrator.backends.kaggle.doctor.live_check import judge, measure

        second = self._canary() if self._canaries else None  # a second version, to test which one a session mounts
        evidence = measure(self._api, self._clock, self._say, self._canaries)
        return (*first[:2], second or first[2], self._phone(evidence), *judge(evidence))

    def _time(self) -> Finding:
        subject, before = "clock", self._clock.now()
        try:
            there = self._api.server_time()
        except GemmaOrchError as error:
            return _failed(subject, error, "retry")
        if there is None:
            return Finding(subject=subject, found="unknown: Kaggle did not send its time", ok=True)
        here = before + (self._clock.now() - before) / 2
        skew_s = (here - there).total_seconds()
        ok = abs(skew_s) <= _LARGEST_SKEW_S
        found = f"{format_duration(abs(skew_s))} {'ahead of' if skew_s > 0 else 'behind'} Kaggle's"
        return Finding(
            subject=subject,
            found=found if abs(skew_s) >= 2.0 else "as Kaggle's",  # Kaggle sends whole seconds
            ok=ok,
            remedy=None if ok else "set this machine's clock: turn on its time synchronisation",
        )

    def _quota(self) -> Finding:
        try:
            quota = self._api.quota()
        except GemmaOrchError as error:
            return _failed("gpu quota", error, "retry")
        if quota.gpu_used_s is None or quota.gpu_allowed_s is None:
            return Finding(subject="gpu quota", found="unknown: Kaggle does not send it; every push checks it again", ok=True)
        left_s = max(0.0, quota.gpu_allowed_s - quota.gpu_used_s - (quota.gpu_reserved_s or 0.0))
        refresh = f", refreshed at {quota.refresh_at:%Y-%m-%d %H:%M} UTC" if quota.refresh_at is not None else ""
        found = (
            f"{format_duration(quota.gpu_used_s)} of {format_duration(quota.gpu_allowed_s)} used this week{_reserved(quota)}, "
        )
        return Finding(
            subject="gpu quota",
            found=f"{found}{format_duration(left_s)} left{refresh}",
            ok=left_s > 0.0,
            remedy=None if left_s > 0.0 else 'wait for the refresh, as runs do, or set accelerator = "cpu" under [kaggle]',
        )

    def _canary(self) -> Finding:
        self._say(f"writing a few bytes to the dataset {CANARY_SLUG}, and waiting for Kaggle to process them")
        try:
            canary = write_canary(self._api, self._clock, self._resume_dir, limit_s=_CANARY_LIMIT_S)
        except GemmaOrchError as error:
            return _failed("dataset write", error, "retry; a run needs a dataset that it can write")
        self._canaries = (*self._canaries, canary)
        found = f"version {canary.version} of {CANARY_SLUG} written, READY after {format_duration(canary.ready_after_s)}, "
        return Finding(subject="dataset write", found=f"{found}read back", ok=True)

    def _phone(self, evidence: Evidence | None) -> Finding:
        """Infer whether the account's phone number is verified; Kaggle has no call for it."""
        subject = "phone verified"
        refused = evidence.trouble.get("session", "") if evidence is not None else ""
        if "enableInternet" in refused:
            return Finding(subject=subject, found=f"no: {refused}", ok=False, remedy=_VERIFY_PHONE)
        if evidence is not None and evidence.pushed_version:
            return Finding(subject=subject, found="yes: a kernel with internet was accepted", ok=True)
        try:
            if (self._api.quota().gpu_used_s or 0.0) > 0.0:
                return Finding(subject=subject, found="yes: the account has used a GPU this week", ok=True)
        except GemmaOrchError:
            pass  # without an answer it stays unknown
        found = "unknown: Kaggle has no call for it; gemma-orch doctor --backend kaggle --live-check finds out"
        return Finding(subject=subject, found=found, ok=True)


def _reserved(quota: AcceleratorQuota) -> str:
    return f", {format_duration(quota.gpu_reserved_s)} reserved by running sessions" if quota.gpu_reserved_s else ""


def _failed(subject: str, error: GemmaOrchError, otherwise: str) -> Finding:
    return Finding(subject=subject, found=error.what, ok=False, remedy=error.remedy or otherwise)
