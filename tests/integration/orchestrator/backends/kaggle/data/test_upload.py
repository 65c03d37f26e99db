from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.data.parts import (
    MOST_FILES,
    Await,
    Create,
    DataFile,
    Keep,
    Move,
    Replace,
    Standing,
    data_parts,
    data_slugs,
    part_files,
    plan_upload,
)
from orchestrator.backends.kaggle.data.progress import Bars, Lines, talk_on
from orchestrator.backends.kaggle.data.upload import Place, read_beside, upload_data, wait_until_ready
from state.backend_settings import KaggleSettings
from state.data_manifest import DataManifest
from state.errors import DataError, TemporaryError, UserError
from state.kaggle.names import data_slug
from tests.kaggle_accounts import Account, account
from tests.kaggle_emulator.faults import Fault
from tests.patience import wait_until
from tests.terminal import Terminal, fill_with_runs
from tests.token_data import write_data

TOKENS = range(2_000)


class Heard:
    """Hears what an upload says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.num_sent = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, title: str, num_bytes: int) -> None:
        self.said.append(f"{title}: {num_bytes}")

    def sent(self, num_bytes: int) -> None:
        self.num_sent += num_bytes

    def end(self) -> None:
        self.said.append("end")


def make_data(folder: Path, *, shard_tokens: int = 500, first_token: int = 0) -> DataManifest:
    tokenizer = b"a tokenizer"
    manifest = write_data(
        folder,
        {"english": [(first_token + token) % 1000 for token in TOKENS]},
        shard_tokens=shard_tokens,
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
    )
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return manifest


def lay_out(folder: Path) -> DataManifest:
    """Put every shard into a part of its own, as `prepare --max-part-size` does."""
    from worker.corpus.parts import describe_parts

    manifest = make_data(folder)
    english = manifest.languages["english"]
    shards = []
    for number, shard in enumerate(english.shards, 1):
        part = folder / f"part-{number:03d}"
        part.mkdir()
        for name in (shard.name, shard.index.name):
            (folder / name).rename(part / name)
        index = shard.index.evolve(name=f"{part.name}/{shard.index.name}")
        shards.append(shard.evolve(name=f"{part.name}/{shard.name}", index=index))
    languages = {"english": english.evolve(shards=tuple(shards))}
    laid_out = manifest.evolve(languages=languages)
    describe_parts(folder, laid_out)
    (folder / "data.json").write_bytes(laid_out.to_json())
    return laid_out


def place(user: Account, **settings: object) -> Place:
    return Place(
        user.api, user.clock, user.home / "resume", KaggleSettings.model_validate({"processing_limit_s": 300, **settings})
    )


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Account]:
    with account(tmp_path) as user:
        yield user


# Planning: values in, values out.


def beside(manifest: DataManifest) -> dict[str, DataFile]:
    return {"data.json": DataFile("data.json", 10, "d" * 64), "tokenizer.model": DataFile("tokenizer.model", 5, "t" * 64)}


def test_shards_are_grouped_into_parts_that_a_dataset_takes(tmp_path: Path) -> None:
    manifest = make_data(tmp_path, shard_tokens=40)
    assert len(manifest.languages["english"].shards) == 50
    parts = part_files(manifest)
    assert [len(names) for names in parts.values()] == [MOST_FILES, MOST_FILES, 100 - 2 * MOST_FILES]
    assert sorted(name for names in parts.values() for name in names) == sorted(manifest.files)
    assert data_slugs(manifest) == tuple(data_slug(manifest.data_sha256, number) for number in range(4))


def test_a_part_is_no_larger_than_what_is_sent_again_in_hours(tmp_path: Path) -> None:
    english = make_data(tmp_path).languages["english"]
    shards = tuple(shard.model_copy(update={"num_tokens": 4 * 10**9}) for shard in english.shards)  # 8 GB each, no blocks
    large = english.model_copy(update={"shards": shards})
    manifest = make_data(tmp_path).model_copy(update={"languages": {"english": large}})
    assert [len(names) for names in part_files(manifest).values()] == [4, 4]


def test_a_folder_laid_out_in_parts_is_taken_as_it_was_laid_out(tmp_path: Path) -> None:
    manifest = lay_out(tmp_path)
    parts = data_parts(manifest, read_beside(tmp_path, manifest))
    assert [part.number for part in parts] == [0, 1, 2, 3, 4]
    assert [file.name for file in parts[0].files] == ["data.json", "tokenizer.model"]
    assert [file.path for file in parts[2].files] == [
        "part-002/english.train-00001.tokens",
        "part-002/english.train-00001.documents",
        "part-002/part.json",
    ]
    assert all("/" not in file.name for part in parts for file in part.files)


def test_the_plan_keeps_what_stands_and_sends_what_does_not(tmp_path: Path) -> None:
    manifest = make_data(tmp_path)
    parts = data_parts(manifest, beside(manifest))
    part = parts[1]
    stands = Standing(1, True, part.sizes, "Initial release")
    shorter = dict(list(part.sizes.items())[1:])
    cases: dict[str, tuple[Standing | None, dict[str, str], Move]] = {
        "nothing": (None, {}, Create(part)),
        "as it should be": (stands, {}, Keep(part, 1)),
        "noted as it should be": (replace(stands, version=3, notes=part.notes_after(2)), {}, Keep(part, 3)),
        "still processed": (Standing(None, False, {}, ""), {}, Await(part)),
        "not ready": (replace(stands, is_ready=False), {}, Await(part)),
    }
    for name, (there, published, move) in cases.items():
        assert plan_upload([part], {part.slug: there}, published) == (move,), name
    reasons = {
        f"{part.files[0].name} is missing": (replace(stands, sizes=shorter), {}),
        "x.tokens does not belong to it": (replace(stands, sizes={**part.sizes, "x.tokens": 1}), {}),
        "not 1000": (replace(stands, sizes={**part.sizes, part.files[0].name: 7}), {}),
        "another preparation": (replace(stands, notes=parts[0].notes_after(2)), {}),
        "other contents": (stands, {part.files[1].name: "0" * 64}),
    }
    for reason, (there, published) in reasons.items():
        (move,) = plan_upload([part], {part.slug: there}, published)
        assert isinstance(move, Replace)
        assert reason in move.reason


# Against the emulator.


def test_data_is_brought_up_once_and_the_manifest_last(user: Account, tmp_path: Path) -> None:
    manifest = make_data(tmp_path / "data")
    heard = Heard()
    first, second = upload_data(place(user), tmp_path / "data", heard)
    assert (first.slug, second.slug) == data_slugs(manifest)
    assert first.sent
    assert second.sent
    made = [entry.body["slug"] for entry in user.emulator.journal.of("CreateDataset")]
    assert made == [second.slug, first.slug]
    assert heard.num_sent == first.bytes + second.bytes == sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
    datasets = {dataset.slug: dataset for dataset in user.emulator.datasets.all()}
    assert all(dataset.private and dataset.title == dataset.slug for dataset in datasets.values())

    again = upload_data(place(user), tmp_path / "data", heard)
    assert [part.sent for part in again] == [False, False]
    assert len(user.emulator.journal.of("BlobPut")) == first.files + second.files
    assert any("already there as version 1" in line for line in heard.said)


def test_a_laid_out_folder_has_one_dataset_a_part(user: Account, tmp_path: Path) -> None:
    manifest = lay_out(tmp_path / "data")
    parts = upload_data(place(user), tmp_path / "data", Heard())
    assert [part.slug for part in parts] == [data_slug(manifest.data_sha256, number) for number in range(5)]
    assert all("part.json" in user.versions(part.slug)[0] for part in parts[1:])


def test_a_version_that_silently_lost_a_file_is_sent_again(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    user.emulator.faults.add(Fault("CreateDataset", "lose_file", calls={1}, files="*00002.tokens"))
    heard = Heard()
    _, part = upload_data(place(user), tmp_path / "data", heard)
    assert part.version == 2
    assert any("english.train-00002.tokens is missing" in line for line in heard.said)


def test_what_is_lost_again_and_again_is_given_up_with_its_name(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    user.emulator.faults.add(Fault("CreateDataset*", "lose_file", files="*00002.tokens"))
    with pytest.raises(DataError, match=r"3 uploads.*english.train-00002.tokens is missing"):
        upload_data(place(user), tmp_path / "data", Heard())


def test_another_preparation_of_the_same_tokens_replaces_what_differs(user: Account, tmp_path: Path) -> None:
    manifest = make_data(tmp_path / "data")
    upload_data(place(user), tmp_path / "data", Heard())
    renamed = manifest.sources[0].evolve(name="english/11.jsonl")  # as long as before, and not in the digest
    (tmp_path / "data" / "data.json").write_bytes(manifest.evolve(sources=(renamed,)).to_json())
    first, second = upload_data(place(user), tmp_path / "data", Heard())
    assert (first.sent, first.version, second.sent) == (True, 2, False)
    assert not any(part.sent for part in upload_data(place(user), tmp_path / "data", Heard()))


def test_lost_answers_stale_reads_and_broken_uploads_make_nothing_twice(user: Account, tmp_path: Path) -> None:
    manifest = make_data(tmp_path / "data")
    user.emulator.faults.add(Fault("CreateDataset", "drop_after", calls={1}))
    user.emulator.faults.add(Fault("BlobPut", "drop_body", calls={2}, after_bytes=100))
    user.emulator.faults.add(Fault("StartBlobUpload", "status", calls={3}, status=429, html=True))
    user.emulator.faults.add(Fault("GetDataset*", "lag", seconds=20, for_s=600))
    upload_data(place(user), tmp_path / "data", Heard())
    assert [len(user.versions(slug)) for slug in data_slugs(manifest)] == [1, 1]


def test_an_outage_while_kaggle_processes_is_waited_out(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    user.emulator.faults.add(Fault("GetDatasetStatus", "status", calls=range(1, 6), status=500))
    assert len(upload_data(place(user), tmp_path / "data", Heard())) == 2


def test_a_dataset_that_does_not_get_done_is_left_with_what_to_do(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    user.emulator.faults.add(Fault("CreateDataset", "slow_processing", calls={1}, seconds=900))
    with pytest.raises(
        TemporaryError, match=r"has not processed gemma-orch-data-.*-p01 within 5m.*\n.*kaggle.com/datasets/tester"
    ):
        upload_data(place(user), tmp_path / "data", Heard())
    user.clock.sleep(600)
    assert len(upload_data(place(user), tmp_path / "data", Heard())) == 2


def test_a_dataset_whose_processing_failed_is_said_at_once(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    user.emulator.faults.add(Fault("CreateDataset", "fail_processing", calls={1}))
    with pytest.raises(TemporaryError, match=r"failed to process.*\n.*delete it"):
        upload_data(place(user), tmp_path / "data", Heard())


def test_what_does_not_fit_is_refused_before_a_byte_is_sent(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    with pytest.raises(UserError, match=r"storage quota is too small.*\n.*at most 4kB"):
        upload_data(place(user, storage_quota_bytes=4_000), tmp_path / "data", Heard())
    assert user.emulator.journal.of("StartBlobUpload") == []


def test_what_kaggle_has_no_room_for_says_so(tmp_path: Path) -> None:
    with account(tmp_path, private_quota_bytes=3_000) as user:
        make_data(tmp_path / "data")
        with pytest.raises(UserError, match="exceeds the maximum of 3000"):
            upload_data(place(user), tmp_path / "data", Heard())


def test_a_folder_that_is_no_data_or_is_damaged_is_not_sent(user: Account, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data folder is invalid"):
        upload_data(place(user), tmp_path, Heard())
    make_data(tmp_path / "data")
    (tmp_path / "data" / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"tokenizer.model cannot be read"):
        upload_data(place(user), tmp_path / "data", Heard())
    (tmp_path / "data" / "tokenizer.model").write_bytes(b"another one")
    with pytest.raises(DataError, match="tokenizer is invalid"):
        upload_data(place(user), tmp_path / "data", Heard())
    shard = tmp_path / "data" / "english.train-00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"missing or has the wrong size: .*english\.train-00000\.tokens"):
        upload_data(place(user), tmp_path / "data", Heard())
    assert user.emulator.journal.of() == []


def test_waiting_believes_only_a_newer_version(user: Account, tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    (first, _) = upload_data(place(user), tmp_path / "data", Heard())
    assert wait_until_ready(user.api, first.slug, 0, clock=user.clock, limit_s=10) == 1
    with pytest.raises(TemporaryError, match="has not processed"):
        wait_until_ready(user.api, first.slug, 1, clock=user.clock, limit_s=10)


class Dies(Heard):
    """Ends the upload when it hears for the nth time of something."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.left = nth

    def _hear(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self._hear()

    def begin(self, title: str, num_bytes: int) -> None:
        self._hear()

    def sent(self, num_bytes: int) -> None:
        self._hear()

    def end(self) -> None:
        self._hear()


def test_an_upload_that_ends_anywhere_is_brought_to_its_end_by_the_next_one(user: Account, tmp_path: Path) -> None:
    for nth in range(1, 100):
        folder = tmp_path / f"data-{nth}"
        manifest = make_data(folder, shard_tokens=len(TOKENS), first_token=nth)
        try:
            upload_data(place(user), folder, Dies(nth))
            break
        except KeyboardInterrupt:
            upload_data(place(user), folder, Heard())
        assert [len(user.versions(slug)) for slug in data_slugs(manifest)] == [1, 1], nth
    assert nth > 8


# How it looks.


def test_lines_say_where_an_upload_is_now_and_then() -> None:
    said: list[str] = []
    seconds = iter([0.0, 1.0, 31.0, 31.0, 31.0, 40.0])
    lines = Lines(said.append, monotonic=lambda: next(seconds))
    lines.begin("part 1", 1000)
    lines.sent(100)
    lines.sent(400)
    lines.end()
    assert said == ["uploading part 1", "  50%, 500B of 1kB in 31s, 16B/s", "  uploaded 500B of 1kB in 40s, 12B/s"]


def test_a_terminal_gets_a_bar() -> None:
    import io

    from rich.console import Console

    screen = io.StringIO()
    bars = talk_on(Console(file=screen, force_terminal=True, width=100), pytest.fail)
    assert isinstance(bars, Bars)
    bars.begin("part 1 [x]", 1000)
    bars.sent(1000)
    bars.end()
    bars.say("done")
    assert "part 1 [x]" in screen.getvalue()
    assert "100 %" in screen.getvalue()


# As it is typed.


def test_the_command_brings_data_up_in_a_process_of_its_own_and_says_so(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    with account(tmp_path, timescale=1.0, processing_s=0.2) as user:
        sent = user.type("upload", str(tmp_path / "data"))
        assert sent.returncode == 0, sent.stderr
        assert sent.stdout.count(" version 1: ") == sent.stdout.count("uploaded") == 2
        assert "next: gemma-orch start --backend kaggle" in sent.stderr
        gone = user.type("upload", str(tmp_path / "data"), http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
        assert (gone.returncode, "Traceback" in gone.stderr, "failed" in gone.stderr) == (3, False, True)


def test_what_was_typed_wrongly_is_said_before_kaggle_is_asked(user: Account, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "home")
    make_data(tmp_path / "data")
    assert "data folder is missing" in str(terminal.fail("upload"))
    assert "one of the two" in str(terminal.fail("upload", str(tmp_path / "data"), "--run", "x"))
    assert "https://www.kaggle.com/settings" in str(terminal.fail("upload", str(tmp_path / "data"))), "no credentials"
    assert "data folder is invalid" in str(terminal.fail("upload", str(tmp_path)))
    fill_with_runs(terminal.home)
    assert "data folder is invalid" in str(terminal.fail("upload", "--run", "fresh")), "the folder of the run's data is gone"
    assert user.emulator.journal.of() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_upload_that_is_killed_goes_on_where_it_was(tmp_path: Path, how: signal.Signals) -> None:
    make_data(tmp_path / "data")
    with account(tmp_path, timescale=1.0, processing_s=0.2) as user:
        hang = Fault("BlobPut", "hang_before", calls={6})
        user.emulator.faults.add(hang)
        environment = {
            **os.environ,
            **user.emulator.client_environment(user.home),
            "GEMMA_ORCH_HOME": str(user.home / "gemma-orch"),
        }
        command = [sys.executable, "-m", "orchestrator", "upload", str(tmp_path / "data")]
        child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: user.emulator.faults.hits(hang), "the upload to hang", process=child)
        child.send_signal(how)
        said = child.communicate()[1]
        assert ("the same command resumes it" in said, "Traceback" in said) == (how is signal.SIGINT, False)
        user.emulator.faults.remove()
        assert user.emulator.datasets.all() == []
        done = user.type("upload", str(tmp_path / "data"), "--json")
        assert done.returncode == 0, done.stderr
        assert [part["version"] for part in json.loads(done.stdout)] == [1, 1]
        names = [entry.body["name"] for entry in user.emulator.journal.of("StartBlobUpload")]
        assert len(names) == len(set(names)), "no file was begun twice"
