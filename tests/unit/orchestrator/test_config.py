from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import TEMPLATE, Explicit, make_spec, overlay, read_config, run_name
from state.errors import UserError
from state.spec import RunSpec, compare_specs


def spec_of(explicit: Explicit, previous: RunSpec | None = None) -> RunSpec:
    return make_spec("r", explicit, previous=previous, num_cores=2, origin="the options")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gemma-orch.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_that_init_writes_is_a_valid_config(tmp_path: Path) -> None:
    spec = spec_of(read_config(written(tmp_path, TEMPLATE)))
    assert spec.model.size == "270m"
    assert spec.limits.session_limit_s == 11.5 * 3600


def test_every_commented_default_of_the_template_is_the_default(tmp_path: Path) -> None:
    uncommented = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line and not line.startswith("# gemma-orch.toml") else line
        for line in TEMPLATE.splitlines()
    )
    explicit = read_config(written(tmp_path, uncommented))
    defaults = RunSpec(name="r", total_steps=1)
    assert explicit["retention"] == defaults.retention.model_dump()
    for key in ("seed", "schedule", "weight_decay", "grad_clip", "compile"):
        assert explicit["training"][key] == getattr(defaults.training, key)
    for key in ("mixing", "alpha", "max_epochs"):
        assert explicit["data"][key] == getattr(defaults.data, key)


def test_paths_in_a_config_are_taken_from_its_own_folder(tmp_path: Path) -> None:
    explicit = read_config(written(tmp_path, '[data]\ncorpus = "text"\ntokenizer = "t.model"\n'))
    assert explicit["data"] == {"corpus": [str(tmp_path / "text")], "tokenizer": str(tmp_path / "t.model")}


def test_a_prepared_folder_and_scratch_are_taken_from_the_configs_own_folder(tmp_path: Path) -> None:
    text = '[data]\nprepared = "tokens"\n[reading]\nscratch_dir = "fast"\nscratch_size = "20GB"\n'
    explicit = read_config(written(tmp_path, text))
    assert explicit["data"] == {"prepared": str(tmp_path / "tokens")}
    assert explicit["reading"] == {"scratch_dir": str(tmp_path / "fast"), "scratch_bytes": 20 * 10**9}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[reading]\nscratch_size = 5\n", "a size in quotes"),
        ("[reading]\nscratch_size = '5 apples'\n", "reading.scratch_size: '5 apples' is not a size"),
        ("[reading]\nscratch_dir = 5\n", "a folder in quotes"),
        ("[reading]\nscratch = 'here'\n", "did you mean 'scratch_dir'"),
        ("[traning]\nseed = 1\n", "did you mean 'training'"),
        ("[training]\nlerning_rate = 1.0\n", "did you mean 'learning_rate'"),
        ("[session]\nlimit = 12\n", "a duration in quotes"),
        ("[session]\nlimit = '12 parsecs'\n", "session.limit"),
        ("run = 3\n", "a table, [run]"),
        ("[run\n", "is not valid TOML"),
    ],
)
def test_a_config_with_a_mistake_names_the_key_and_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        read_config(written(tmp_path, text))
    assert expected in str(error.value)
    assert "gemma-orch.toml" in str(error.value)


def test_a_config_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_config(tmp_path / "nowhere.toml")


def test_a_config_that_is_not_text_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "gemma-orch.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not valid TOML"):
        read_config(path)


@pytest.mark.parametrize(
    ("explicit", "expected"),
    [
        ({}, "--total-steps N"),
        ({"total_steps": 0}, "run.total_steps is 0"),
        ({"total_steps": 5, "training": {"learning_rate": "fast"}}, "training.learning_rate is 'fast'"),
        ({"total_steps": 5, "limits": {"session_steps": 0}}, "session.steps is 0"),
        ({"total_steps": 5, "retention": {"keep_last": 1}}, "checkpoints.keep_last is 1"),
        ({"total_steps": 5, "data": {"prepared": "d", "corpus": ["c"]}}, "data: prepared excludes corpus"),
        ({"total_steps": 5, "data": {"mixing": "unimaxx"}}, "data.mixing is 'unimaxx'"),
        ({"total_steps": 5, "reading": {"scratch_dir": "s", "scratch_bytes": 0}}, "reading.scratch_size is 0"),
        ({"total_steps": 5, "training": {"batch_size": 8, "micro_batch_size": 3}}, "does not divide"),
        ({"total_steps": 5, "model": {"size": "tinny"}}, "did you mean 'tiny'"),
        ({"total_steps": 5, "model": {"num_heads": 3}}, "multiple of num_kv_heads"),
    ],
)
def test_a_spec_that_is_not_valid_names_the_key_as_the_user_writes_it(explicit: Explicit, expected: str) -> None:
    with pytest.raises(UserError) as error:
        spec_of(explicit)
    assert expected in str(error.value)


def test_options_win_over_the_config_table_by_table() -> None:
    merged = overlay({"training": {"seed": 1, "batch_size": 4}, "name": "a"}, {"training": {"seed": 2}})
    assert merged == {"training": {"seed": 2, "batch_size": 4}, "name": "a"}


def test_what_is_not_said_again_keeps_its_old_value() -> None:
    first = spec_of({"total_steps": 10, "training": {"seed": 7}, "limits": {"session_steps": 3}})
    again = spec_of({"total_steps": 20}, previous=first)
    assert again.training.seed == 7
    assert again.limits.session_steps == 3
    assert [change.field for change in compare_specs(first, again)] == ["total_steps"]


def test_a_new_run_is_fixed_to_the_threads_of_the_machine_that_begins_it() -> None:
    first = spec_of({"total_steps": 10})
    assert first.training.threads == 2
    assert make_spec("r", {}, previous=first, num_cores=64, origin="").training.threads == 2


def test_a_run_without_a_name_is_named_after_model_and_corpus() -> None:
    assert run_name({}) == "tiny-sample"
    assert run_name({"model": {"size": "1b"}, "data": {"corpus": ["/x/My Corpus (2)"]}}) == "1b-my-corpus--2"
    assert run_name({"data": {"corpus": ["/x/हिंदी"]}}) == "tiny"
    assert run_name({"data": {"prepared": "/x/tokens-2"}}) == "tiny-tokens-2"


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a b", "a" * 41, "नाम"])
def test_a_name_that_cannot_name_a_run_everywhere_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="the run's name is invalid"):
        run_name({"name": name})


def test_a_contradiction_is_told_in_our_words_alone() -> None:
    with pytest.raises(UserError) as caught:
        make_spec("r", {"total_steps": 1, "data": {"max_epochs": 2.0}}, previous=None, num_cores=1, origin="the options")
    assert caught.value.what == "data: max_epochs needs mixing = unimax: the other rules ignore it"
