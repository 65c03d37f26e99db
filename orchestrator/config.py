"""Merge the config file and the command line into one spec; values that neither gives keep their old value."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from state.architecture import ModelSpec, resolve_architecture
from state.backend_settings import BACKEND_SETTINGS
from state.errors import UserError, did_you_mean
from state.layout import check_run_name
from state.quantities import parse_duration_s, parse_size_bytes
from state.spec import DataSpec, Retention, RunSpec, TrainingSpec

Explicit = dict[str, Any]
"""A partial RunSpec: only the fields that the user gave."""

_SESSION_KEYS = {"limit": "session_limit_s", "checkpoint_every": "checkpoint_every_s", "steps": "session_steps"}
_READING_KEYS = {"scratch_dir": "scratch_dir", "scratch_size": "scratch_bytes"}
_BACKEND_KEYS: dict[str, dict[str, str]] = {
    backend: {field.removesuffix("_s").removesuffix("_bytes"): field for field in settings.model_fields}
    for backend, settings in BACKEND_SETTINGS.items()
}
"""By backend: the keys of its table and the fields that they set. A value in the table carries its own unit, such as "10m"."""
_RUN_KEYS = ("name", "total_steps", "backend")
_TABLES: dict[str, tuple[str, ...]] = {
    "run": _RUN_KEYS,
    "model": tuple(ModelSpec.model_fields),
    "data": tuple(DataSpec.model_fields),
    "training": tuple(TrainingSpec.model_fields),
    "reading": tuple(_READING_KEYS),
    "session": tuple(_SESSION_KEYS),
    "checkpoints": tuple(Retention.model_fields),
    **{backend: tuple(keys) for backend, keys in _BACKEND_KEYS.items()},
}


def read_config(path: Path) -> Explicit:
    """Read a `gemma-orch.toml`; its relative paths start at its own folder.

    Raises:
        UserError: the file cannot be read, is not TOML, or has an unknown table or key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}", remedy="gemma-orch init writes one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not valid TOML: {error}") from error
    explicit: Explicit = {}
    for table, values in tables.items():
        if table not in _TABLES:
            raise _unknown(path, f"[{table}]", table, list(_TABLES), "tables")
        if not isinstance(values, dict):
            raise UserError(f"{path}: {table} is invalid: {values!r}", expected=f"a table, [{table}]")
        for key in values:
            if key not in _TABLES[table]:
                raise _unknown(path, f"{table}.{key}", key, list(_TABLES[table]), f"keys of [{table}]")
        explicit.update(_read_table(path, table, values))
    return explicit


def _unknown(path: Path, where: str, name: str, known: list[str], kind: str) -> UserError:
    return UserError(f"{path}: {where} is unknown", expected=f"{kind}: {', '.join(known)}", remedy=did_you_mean(name, known))


def _read_table(path: Path, table: str, values: dict[str, Any]) -> Explicit:
    match table:
        case "run":
            return dict(values)
        case "session":
            return {"limits": {_SESSION_KEYS[key]: _session_value(path, key, value) for key, value in values.items()}}
        case "data":
            return {"data": _with_absolute_paths(values, path.parent)}
        case "reading":
            return {"reading": {_READING_KEYS[key]: _reading_value(path, key, value) for key, value in values.items()}}
        case "checkpoints":
            return {"retention": dict(values)}
        case backend if backend in _BACKEND_KEYS:
            fields = _BACKEND_KEYS[backend]
            return {backend: {fields[key]: _backend_value(path, backend, key, value) for key, value in values.items()}}
        case _:
            return {table: dict(values)}


def _session_value(path: Path, key: str, value: Any) -> Any:
    return value if key == "steps" else _duration_s(path, f"session.{key}", value)


def _backend_value(path: Path, backend: str, key: str, value: Any) -> Any:
    field = _BACKEND_KEYS[backend][key]
    if field.endswith("_s"):
        return _duration_s(path, f"{backend}.{key}", value)
    return _size_bytes(path, f"{backend}.{key}", value) if field.endswith("_bytes") else value


def _duration_s(path: Path, key: str, value: Any) -> float:
    if not isinstance(value, str):
        raise UserError(f"{path}: {key} is invalid: {value!r}", expected="a duration in quotes, such as '11h30m'")
    try:
        return parse_duration_s(value)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error.what}", expected=error.expected) from error


def _size_bytes(path: Path, key: str, value: Any) -> int:
    if not isinstance(value, str):
        raise UserError(f"{path}: {key} is invalid: {value!r}", expected="a size in quotes, such as '20GB'")
    try:
        return parse_size_bytes(value)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error.what}", expected=error.expected) from error


def _reading_value(path: Path, key: str, value: Any) -> Any:
    if key == "scratch_size":
        return _size_bytes(path, "reading.scratch_size", value)
    if not isinstance(value, str):
        raise UserError(f"{path}: reading.{key} is invalid: {value!r}", expected="a folder in quotes")
    return _absolute(value, path.parent)


def _absolute(text: str, folder: Path) -> str:
    return str((folder / Path(text).expanduser()).absolute())


def _with_absolute_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    absolute = dict(values)
    if isinstance(corpus := values.get("corpus"), str):
        corpus = [corpus]
    if corpus is not None:
        if not isinstance(corpus, list) or not all(isinstance(entry, str) for entry in corpus):
            raise UserError(f"data.corpus is invalid: {corpus!r}", expected="a folder in quotes, or a list of them")
        absolute["corpus"] = [_absolute(entry, folder) for entry in corpus]
    for key in ("tokenizer", "prepared"):
        if isinstance(named := values.get(key), str):
            absolute[key] = _absolute(named, folder)
    return absolute


def overlay(base: Explicit, over: Explicit) -> Explicit:
    """Merge two partial specs table by table; values of the second one win."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def run_name(explicit: Explicit) -> str:
    """Return the given name of the run; without one, a name made of the model and the corpus or data folder.

    Raises:
        UserError: the given name is invalid.
    """
    if (name := explicit.get("name")) is not None:
        return check_run_name(name if isinstance(name, str) else repr(name))
    size = explicit.get("model", {}).get("size", ModelSpec().size)
    data = explicit.get("data", {})
    text_from = data.get("prepared") or next(iter(data.get("corpus") or ()), "sample")
    text = f"{size}-{Path(str(text_from)).name}".lower()
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text).strip("-")[:40].strip("-")


def make_spec(name: str, explicit: Explicit, *, previous: RunSpec | None, num_cores: int, origin: str) -> RunSpec:
    """Return the complete spec of a run.

    Args:
        name: The run's name.
        explicit: The values that the user gave; all others come from the previous spec, or are defaults.
        previous: The run's current spec; None for a new run.
        num_cores: CPU threads of a new run; they stay fixed, because results depend on them.
        origin: Where the explicit values come from, for messages.

    Raises:
        UserError: a value is missing or invalid; the message names its key.
    """
    base: Explicit = (
        previous.model_dump(mode="json", exclude={"schema_version"})
        if previous is not None
        else {"training": {"threads": num_cores}}
    )
    values = {**overlay(base, explicit), "name": name}
    if "total_steps" not in values:
        raise UserError("total_steps is missing", remedy="add --total-steps N, or total_steps under [run] in the config file")
    try:
        spec = RunSpec.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_problem(problem) for problem in error.errors()), remedy=f"correct it in {origin}") from error
    if spec.training.threads == 0:
        spec = spec.evolve(training=spec.training.evolve(threads=num_cores))
    resolve_architecture(spec.model, vocab_size=256)  # reports invalid model numbers now; the tokenizer's vocabulary comes later
    return spec


def _problem(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]] or [""]
    key = ".".join(location)
    if location[:1] == ["limits"] and len(location) > 1:
        names = {field: key for key, field in _SESSION_KEYS.items()}
        key = f"session.{names.get(location[1], location[1])}"
    elif location[:1] == ["retention"]:
        key = ".".join(["checkpoints", *location[1:]])
    elif location == ["reading", "scratch_bytes"]:
        key = "reading.scratch_size"
    elif location[0] in _BACKEND_KEYS and len(location) > 1:
        names = {field: key for key, field in _BACKEND_KEYS[location[0]].items()}
        key = f"{location[0]}.{names.get(location[1], location[1])}"
    elif len(location) == 1 and location[0] in _RUN_KEYS:
        key = f"run.{location[0]}"
    value = "" if isinstance(problem.get("input"), dict) else f" is {problem.get('input')!r}"
    return f"{key or 'the spec'}{value}: {problem['msg'].removeprefix('Value error, ')}"  # pydantic adds the prefix to our text


TEMPLATE = """\
# gemma-orch.toml: one training run. `gemma-orch start --config gemma-orch.toml` starts it, and continues it.
# Lines that are commented out show the defaults. Options of the command line override this file.

[run]
name = "my-gemma"
total_steps = 100000
# backend = "local"

[model]
size = "270m"              # tiny, 50m, 270m, 1b, 4b, 12b, 27b; any number of it may be overridden:
# num_layers = 18
# hidden_size = 640

[data]
# Without a corpus, the run trains on the sample that comes with gemma-orch.
# corpus = ["corpus"]      # folders with one subfolder per language, JSONL in them: {"text": "..."}
# tokenizer = "tokenizer.model"    # a SentencePiece model
# prepared = "data"        # a folder that `gemma-orch prepare` has made, instead of corpus and tokenizer
sequence_length = 512      # tokens
# mixing = "alpha"         # mix languages in proportion to tokens ** alpha; or "unimax": as evenly as max_epochs allows
# alpha = 0.7
# max_epochs = 4.0         # unimax only: most epochs of any language
# weights = { english = 0.5, hindi = 0.3, konkani = 0.2 }    # fixed shares, instead of mixing

[reading]
# scratch_dir = "/local/scratch"    # a fast local folder, if the data is on a slow mount
# scratch_size = "20GB"    # most disk space that it takes; less is slower, never wrong

[training]
# seed = 0
batch_size = 16            # sequences a step
# micro_batch_size = 4     # sequences at once; smaller needs less memory
learning_rate = 2e-3
warmup_steps = 1000
# schedule = "constant"    # after the warm-up; a run with "cosine" cannot be extended, as its decay ends at total_steps
# weight_decay = 0.1
# grad_clip = 1.0
# compile = false          # compile each layer: slower to start, faster to train

[session]
limit = "11h30m"           # longest time of a session on the platform
checkpoint_every = "10m"
# steps = 1000             # also end a session after this many steps

[checkpoints]
# keep_last = 3
# keep_every = 0           # also keep checkpoints at steps divisible by this; 0: none
# keep_session_starts = 3  # also keep the start checkpoints of the last sessions, for rerun
"""


def named_template(name: str) -> str:
    """Return the template with a run's name filled in.

    Raises:
        UserError: the name is invalid.
    """
    return TEMPLATE.replace('name = "my-gemma"', f'name = "{check_run_name(name)}"')
