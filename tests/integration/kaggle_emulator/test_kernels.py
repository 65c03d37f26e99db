"""What the emulator says about kernels (contract 3.1 to 3.4), as the unmodified SDK hears it; here sessions stay queued."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from kagglesdk.kernels.types.kernels_api_service import (
    ApiAcceleratorQuota,
    ApiCancelKernelSessionRequest,
    ApiDeleteKernelRequest,
    ApiGetAcceleratorQuotaStatisticsRequest,
    ApiListKernelsRequest,
)
from kagglesdk.kernels.types.kernels_enums import KernelExecutionType
from kagglesdk.models.types.model_api_service import ApiCreateModelRequest

from tests.kaggle_clients import USER, Sdk, connected, run_command, sdk
from tests.kaggle_emulator import Fault

NEVER_S = math.inf
T4 = "NvidiaTeslaT4"


@pytest.fixture
def kaggle(ram_path: Path) -> Iterator[Sdk]:
    with connected(ram_path, queue_s=NEVER_S) as connection:
        yield connection


def delete(kaggle: Sdk, slug: str) -> None:
    request = ApiDeleteKernelRequest()
    request.user_name, request.kernel_slug = USER, slug
    kaggle.kernels.delete_kernel(request)


def gpu_quota(kaggle: Sdk) -> ApiAcceleratorQuota:
    quota = kaggle.kernels.get_accelerator_quota_statistics(ApiGetAcceleratorQuotaStatisticsRequest()).gpu_quota
    assert quota is not None
    return quota


def test_versions_of_a_kernel_count_from_one_and_are_named_by_a_label(kaggle: Sdk) -> None:
    assert [kaggle.push("train-s1").version_number for _ in range(2)] == [1, 2]
    assert [kaggle.status("train-s1", label) for label in (None, "v1", "v2")] == ["QUEUED"] * 3
    for label, status in (("2", 404), ("v3", 404), ("latest", 404)):
        with pytest.raises(requests.HTTPError) as refused:
            kaggle.status("train-s1", label)
        assert refused.value.response.status_code == status
    with pytest.raises(requests.HTTPError) as unknown:
        kaggle.status("train-s9")
    assert unknown.value.response.status_code == 403


def test_a_kernel_that_does_not_exist_may_also_be_not_found(ram_path: Path) -> None:
    with connected(ram_path, unknown_kernel_status=404) as kaggle, pytest.raises(requests.HTTPError) as unknown:
        kaggle.status("train-s1")
    assert unknown.value.response.status_code == 404


def test_kernels_datasets_and_models_of_an_account_cannot_have_the_same_slug(kaggle: Sdk) -> None:
    kaggle.create_dataset("of-a-dataset", {"a.bin": b"1"})
    kaggle.push("of-a-kernel")
    kaggle.push("another-kernel")
    model = ApiCreateModelRequest()
    model.owner_slug, model.slug, model.title, model.is_private = USER, "of-a-kernel", "of-a-kernel", True
    refusals = {
        "a dataset": lambda: kaggle.push("of-a-dataset"),
        "a notebook": lambda: kaggle.create_dataset("of-a-kernel", {"a.bin": b"1"}),
        "a notebook.": lambda: kaggle.client.models.model_api_client.create_model(model),
        "a dataset.": lambda: kaggle.push("of-a-dataset", new_title="Another title"),  # the slug is what is taken
    }
    for kind, call in refusals.items():
        with pytest.raises(requests.HTTPError) as refused:
            call()
        said = refused.value.response.json()["error"]
        assert (refused.value.response.status_code, said["status"]) == (409, "ALREADY_EXISTS")
        assert f"is already in use by {kind.rstrip('.')}. Please choose another title." in said["message"]
    assert kaggle.push("another-kernel").version_number == 2
    delete(kaggle, "of-a-kernel")
    assert kaggle.create_dataset("of-a-kernel", {"a.bin": b"1"}).status == "ok"


def test_the_official_client_says_that_a_name_is_taken(kaggle: Sdk, ram_path: Path) -> None:
    kaggle.create_dataset("of-a-dataset", {"a.bin": b"1"})
    folder = ram_path / "pushed"
    folder.mkdir()
    (folder / "script.py").write_text("pass")
    metadata = {"id": f"{USER}/of-a-dataset", "title": "of-a-dataset", "code_file": "script.py", "language": "python"}
    (folder / "kernel-metadata.json").write_text(json.dumps({**metadata, "kernel_type": "script", "is_private": True}))
    typed = run_command(kaggle.emulator, ram_path / "home", "kernels", "push", "-p", str(folder))
    assert "409" in typed.stdout + typed.stderr
    assert kaggle.emulator.kernels.all() == []


def test_an_account_may_be_emulated_with_a_namespace_for_each_kind(ram_path: Path) -> None:
    with connected(ram_path, queue_s=NEVER_S, one_namespace=False) as kaggle:
        kaggle.create_dataset("of-a-dataset", {"a.bin": b"1"})
        assert kaggle.push("of-a-dataset").version_number == 1


def test_a_kernel_tells_its_source_its_sources_and_its_machine(kaggle: Sdk) -> None:
    kaggle.create_dataset("my-data", {"a.bin": b"1"})
    pushed = kaggle.push("train-s1", "print(1)", dataset_data_sources=[f"{USER}/my-data"], machine_shape=T4)
    seen = kaggle.kernel("train-s1")
    assert seen.metadata is not None
    assert seen.blob is not None
    assert (seen.metadata.id, seen.metadata.current_version_number) == (pushed.kernel_id, 1)
    assert (seen.metadata.machine_shape, seen.metadata.dataset_data_sources) == (T4, [f"{USER}/my-data"])
    assert seen.blob.source == "print(1)"


def test_sources_that_do_not_exist_are_named_and_the_kernel_runs_all_the_same(kaggle: Sdk) -> None:
    kaggle.create_dataset("not-ready", {"a.bin": b"1"}, ready=False)
    wanted = {"dataset_data_sources": [f"{USER}/not-ready", "else/where"], "kernel_data_sources": [f"{USER}/nothing"]}
    pushed = kaggle.push("train-s1", **wanted)
    assert pushed.version_number == 1
    assert pushed.invalid_dataset_sources == wanted["dataset_data_sources"]
    assert pushed.invalid_kernel_sources == wanted["kernel_data_sources"]


def test_a_source_of_more_than_a_megabyte_is_refused(kaggle: Sdk) -> None:
    with pytest.raises(requests.HTTPError) as refused:
        kaggle.push("train-s1", "#" * 1_000_001)
    assert refused.value.response.status_code == 400
    assert "less than 1 megabytes" in refused.value.response.json()["error"]["message"]
    assert kaggle.push("train-s1", "#" * 1_000_000).version_number == 1


@pytest.mark.parametrize(("kind", "most", "shape"), [("GPU", 2, T4), ("CPU", 5, None), ("TPU", 1, "TpuV5E8")])
def test_only_so_many_sessions_may_be_alive_at_once(kaggle: Sdk, kind: str, most: int, shape: str | None) -> None:
    for number in range(most):
        assert kaggle.push(f"train-s{number}", machine_shape=shape).version_number == 1
    refused = kaggle.push("one-more", machine_shape=shape)
    assert (refused.error, refused.version_number) == (f"Maximum batch {kind} session count of {most} reached.", 0)
    assert kaggle.emulator.sessions.max_live("train-") == most
    delete(kaggle, "train-s0")
    kaggle.emulator.wait_for_session("train-s0")
    assert kaggle.push("one-more", machine_shape=shape).version_number == 1


def test_the_week_has_only_so_many_gpu_seconds_and_begins_on_saturday(kaggle: Sdk) -> None:
    clock = kaggle.emulator.clock
    kaggle.emulator.quota.note(clock.now(), "GPU", 108_000)
    answer = kaggle.kernels.get_accelerator_quota_statistics(ApiGetAcceleratorQuotaStatisticsRequest())
    assert str(answer.quota_refresh_time) == "2026-11-28 00:00:00"
    assert gpu_quota(kaggle).time_used == timedelta(hours=30)
    refused = kaggle.push("train-s1", machine_shape=T4)
    assert (refused.error, refused.version_number) == ("Maximum weekly GPU quota of 30.00 hours reached.", 0)
    assert kaggle.push("on-cpu").version_number == 1
    clock.advance(5 * 24 * 3600)
    assert kaggle.push("train-s1", machine_shape=T4).version_number == 1


def test_a_live_session_reserves_what_it_may_still_use(kaggle: Sdk) -> None:
    kaggle.push("train-s1", machine_shape=T4, session_timeout_seconds=600)
    quota = gpu_quota(kaggle)
    assert (quota.time_reserved, quota.time_used) == (timedelta(seconds=600), timedelta(0))


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("NvidiaTeslaP100", T4),
        ("TpuV38", "TpuV5E8"),
        ("NvidiaH100", "None"),
        ("TpuV232", "None"),
        ("Typo", "None"),
        (None, "None"),
    ],
)
def test_shapes_that_cannot_be_had_are_replaced_silently(kaggle: Sdk, asked: str, given: str) -> None:
    assert kaggle.push("train-s1", machine_shape=asked).error == ""
    seen = kaggle.kernel("train-s1").metadata
    assert seen is not None
    assert seen.machine_shape == given


def test_a_session_timeout_above_the_limit_is_refused(kaggle: Sdk) -> None:
    assert "lower than the global maximum" in kaggle.push("train-s1", session_timeout_seconds=43_201).error
    assert kaggle.push("train-s1", session_timeout_seconds=43_200).error == ""


def test_internet_needs_a_verified_phone(ram_path: Path) -> None:
    with connected(ram_path, queue_s=NEVER_S, phone_verified=False) as kaggle:
        with pytest.raises(requests.HTTPError) as refused:
            kaggle.push("train-s1")
        assert refused.value.response.json()["error"]["message"] == "Permission 'kernelSessions.enableInternet' was denied"
        assert kaggle.push("train-s1", enable_internet=False).version_number == 1


def test_a_title_that_does_not_give_the_slug_wedges_the_kernel_and_its_slot(kaggle: Sdk) -> None:
    assert kaggle.push("train-s1", new_title="Quite another name", machine_shape=T4).version_number == 1
    for slug in ("train-s1", "quite-another-name"):
        with pytest.raises(requests.HTTPError) as refused:
            kaggle.status(slug)
        assert refused.value.response.status_code == 403
        with pytest.raises(requests.HTTPError):
            delete(kaggle, slug)
    assert len(kaggle.emulator.sessions.live()) == 1


def test_the_kind_of_a_kernel_cannot_change_and_kernels_of_others_are_not_found(kaggle: Sdk) -> None:
    kaggle.push("train-s1")
    assert kaggle.push("train-s1", kernel_type="notebook").error == "You cannot change the editor type"
    assert kaggle.push("train-s1", slug="someone/train-s1").error == "Notebook not found"
    assert kaggle.push("train-s1", id=99).error == "Kernel not found"


def test_a_push_may_only_save(kaggle: Sdk) -> None:
    assert kaggle.push("train-s1", kernel_execution_type=KernelExecutionType.QUICK_SAVE).version_number == 1
    assert kaggle.status("train-s1") == "NEW_SCRIPT"
    assert kaggle.emulator.sessions.all() == []


def test_own_kernels_are_listed_newest_first(ram_path: Path) -> None:
    with connected(ram_path, queue_s=NEVER_S, other_users={"rival": "k"}) as kaggle:
        for slug in ("train-s1", "train-s2", "other-work"):
            kaggle.push(slug)
            kaggle.emulator.clock.advance(1)
        request = ApiListKernelsRequest()
        request.user, request.search, request.page_size = USER, "train", 1
        first = kaggle.kernels.list_kernels(request)
        request.page_token = first.next_page_token
        second = kaggle.kernels.list_kernels(request)
        assert [kernel.ref for kernel in [*first.kernels, *second.kernels]] == [f"{USER}/train-s2", f"{USER}/train-s1"]
        with sdk(kaggle.emulator, ram_path, username="rival", password="k") as rival:
            assert rival.kernels.list_kernels(request).kernels == []


def test_a_session_cannot_be_cancelled(kaggle: Sdk) -> None:
    kaggle.push("train-s1")
    request = ApiCancelKernelSessionRequest()
    request.kernel_session_id = 1
    with pytest.raises(requests.HTTPError) as refused:
        kaggle.kernels.cancel_kernel_session(request)
    assert refused.value.response.json()["error"]["message"] == "Permission 'kernelSessions.cancel' was denied"


def test_deleting_a_kernel_ends_its_session_or_leaves_a_ghost(ram_path: Path) -> None:
    with connected(ram_path, queue_s=NEVER_S, delete_stops_session=False) as kaggle:
        kaggle.push("train-s1", machine_shape=T4)
        delete(kaggle, "train-s1")
        with pytest.raises(requests.HTTPError):
            kaggle.status("train-s1")
        assert len(kaggle.emulator.sessions.live("train-s1")) == 1


def test_a_push_can_be_refused_as_if_the_world_were_full(kaggle: Sdk) -> None:
    message = "Maximum batch GPU session count of 2 reached."
    kaggle.emulator.faults.add(Fault("SaveKernel", "refuse", calls={1}, value=message))
    assert kaggle.push("train-s1").error == message
    assert kaggle.push("train-s1").version_number == 1
