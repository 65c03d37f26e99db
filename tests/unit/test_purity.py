"""Rules of the house that no type checker holds: who may read the clock, rename a file, or swallow an error."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.repository import ROOT

_PACKAGES = ("state", "worker", "orchestrator")
_SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in _PACKAGES for path in (ROOT / package).rglob("*.py"))

_PURE = {
    "orchestrator/backends/kaggle/adopt/replay.py",
    "orchestrator/backends/kaggle/checkpoints/known.py",
    "orchestrator/backends/kaggle/data/parts.py",
    "orchestrator/backends/kaggle/limits.py",
    "orchestrator/backends/kaggle/publish/card.py",
    "orchestrator/backends/kaggle/session/status.py",
    "orchestrator/backends/kaggle/session/storage_budget.py",
    "orchestrator/backends/kaggle/sightings.py",
    "orchestrator/controller/decide.py",
    "orchestrator/controller/prune.py",
    "orchestrator/controller/reconcile.py",
    "orchestrator/controller/retry.py",
    "orchestrator/monitoring/speed.py",
    "orchestrator/monitoring/views.py",
    "state/fence.py",
    "state/lineage.py",
    "state/retention.py",
    "state/session.py",
    "worker/session/budget.py",
} | {name for name in _SOURCES if name.startswith("orchestrator/monitoring/render")}

_PURE_IMPORTS = {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "enum",
    "hashlib",
    "io",  # rich draws into a string
    "itertools",
    "math",
    "operator",
    "pydantic",
    "rich",
    "state",
    "typing",
    "worker.session.budget",
    # Of datetime, the types; its clock is looked for by name.
    "datetime",
    # Of backends, what they say; none of the places that say it.
    "orchestrator.ports",
    *(name.removesuffix(".py").replace("/", ".") for name in _PURE),
}
_IMPURE_STATE = {"state.clock", "state.crash_points", "state.files", "state.stores.run_store"}
_IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
_IMPURE_ATTRIBUTES = {"now", "utcnow", "today", "read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "glob", "stat"}

_ENVIRONMENT_READERS = {"orchestrator/wiring.py", "worker/__main__.py"}
_NAMES_THAT_STAY = {"worker/corpus/staging.py"}  # always the same, under a lock: the next process goes on there
_MOST_BROAD_EXCEPTS = 2  # the tick loop and the worker's last resort


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), filename=name)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, and for `from a import b` also a.b, which may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield str(node.module)


def attributes_of(tree: ast.AST, owner: str) -> Iterator[str]:
    """Every name that is taken from a module: owner.NAME and `from owner import NAME`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == owner:
            yield from (alias.name for alias in node.names)


def called_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def called_methods(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr


def is_allowed(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:length]) in _PURE_IMPORTS for length in range(1, len(parts) + 1))


def test_the_pure_modules_are_all_there() -> None:
    assert set(_SOURCES) >= _PURE


@pytest.mark.parametrize("name", sorted(_PURE))
def test_a_pure_module_imports_nothing_that_reads_the_world(name: str) -> None:
    imported = set(imports_of(tree_of(name)))
    assert {module for module in imported if not is_allowed(module)} == set()
    assert imported & _IMPURE_STATE == set()


@pytest.mark.parametrize("name", sorted(_PURE))
def test_a_pure_module_reads_no_clock_and_no_file_and_prints_nothing(name: str) -> None:
    tree = tree_of(name)
    assert set(called_names(tree)) & _IMPURE_CALLS == set()
    assert set(called_methods(tree)) & _IMPURE_ATTRIBUTES == set()


@pytest.mark.parametrize("name", [name for name in _SOURCES if name != "state/files.py"])
def test_only_one_module_renames_and_fsyncs(name: str) -> None:
    tree = tree_of(name)
    forbidden = {"replace", "rename", "renames", "link", "fsync", "fdatasync", "rmdir", "removedirs"}
    assert set(attributes_of(tree, "os")) & forbidden == set()
    assert set(attributes_of(tree, "shutil")) & {"move", "rmtree"} == set()
    for node in ast.walk(tree):  # Path.rename and Path.replace take one argument, str.replace takes two
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("rename", "replace"):
            of_files = isinstance(node.func.value, ast.Name) and node.func.value.id in ("files", "dataclasses")
            of_a_moment = (
                bool(node.keywords) and not node.args and {word.arg for word in node.keywords} <= {"tzinfo", "microsecond"}
            )
            assert of_files or of_a_moment or len(node.args) == 2, f"{name}:{node.lineno} renames by itself"


@pytest.mark.parametrize("name", [name for name in _SOURCES if name != "state/files.py"])
def test_only_one_module_makes_names_of_temporary_files(name: str) -> None:
    """What is made from a process id, or from nothing but the file's own name, another process can make as well."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in {"with_suffix", "mkstemp", "mktemp"}, f"{name}:{node.lineno} makes a name by itself"
            beside = node.func.attr == "with_name" and name not in _NAMES_THAT_STAY
            assert not beside, f"{name}:{node.lineno} makes a name by itself"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            ending = node.value.rpartition(".")[2] if "." in node.value else ""
            assert ending not in {"part", "tmp", "temp", "new", "old", "bak"}, f"{name}:{node.lineno} names a temporary file"
        if isinstance(node, ast.JoinedStr):
            inner = {call.attr for call in ast.walk(node) if isinstance(call, ast.Attribute)}
            assert "getpid" not in inner, f"{name}:{node.lineno} makes a name of the process id, which others may have"


@pytest.mark.parametrize(
    "name", [name for name in _SOURCES if name not in _ENVIRONMENT_READERS and not name.startswith("orchestrator/cli")]
)
def test_the_environment_is_read_at_the_doors_only(name: str) -> None:
    tree = tree_of(name)
    assert set(attributes_of(tree, "os")) & {"getenv", "environb", "getenvb"} == set()
    mentions = sum(attribute == "environ" for attribute in attributes_of(tree, "os"))
    assert mentions == sum(is_written_environment(node) for node in ast.walk(tree)), "it may be set, as torch wants it, not read"


def is_written_environment(node: ast.AST) -> bool:
    """Whether a node is `os.environ[...] = ...` or the statement `os.environ.setdefault(...)`."""
    match node:
        case ast.Subscript(value=ast.Attribute(attr="environ"), ctx=ast.Store()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="setdefault"))):
            return True
    return False


def test_broad_excepts_are_two_at_most() -> None:
    broad = [
        f"{name}:{node.lineno}"
        for name in _SOURCES
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    ]
    assert len(broad) <= _MOST_BROAD_EXCEPTS, broad


@pytest.mark.parametrize("name", _SOURCES)
def test_a_python_that_is_started_does_not_look_into_the_users_folder(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.List) and node.elts and "executable" in attributes_of(node.elts[0], "sys"):
            assert any(isinstance(part, ast.Constant) and part.value == "-P" for part in ast.walk(node)), f"{name}:{node.lineno}"


def test_no_module_imports_the_clients_that_print_prompt_end_the_process_or_wait_for_ever() -> None:
    roots = {(name, module.partition(".")[0]) for name in _SOURCES for module in imports_of(tree_of(name))}
    assert [name for name, root in roots if root in ("kaggle", "kagglehub")] == []


def _run(program: str, modules: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that is told modules, in a folder that is empty, with nothing in the environment."""
    return subprocess.run(
        [sys.executable, "-c", program, *modules],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


_BACKEND_NAMES = {"local", "kaggle", "simulated", "slurm"}
_KNOWS_BACKENDS = ("orchestrator/backends/", "orchestrator/wiring.py", "state/kaggle/", "worker/kaggle/")


@pytest.mark.parametrize("source", [name for name in _SOURCES if not name.startswith(_KNOWS_BACKENDS)])
def test_only_wiring_and_the_adapters_ask_for_the_name_of_a_backend(source: str) -> None:
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    asked = [
        constant.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.match_case)
        for constant in ast.walk(node.pattern if isinstance(node, ast.match_case) else node)
        if isinstance(constant, ast.Constant) and constant.value in _BACKEND_NAMES
    ]
    adapters = [
        node.id
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "isinstance"
        for node in ast.walk(call.args[1])
        if isinstance(node, ast.Name) and node.id.startswith(("Local", "Kaggle", "Simulated"))
    ]
    assert (asked, adapters) == ([], [])


@pytest.mark.parametrize("source", [name for name in _SOURCES if name != "state/document.py"])
def test_documents_change_validated(source: str) -> None:
    assert "model_copy" not in (ROOT / source).read_text(encoding="utf-8"), "Document.evolve checks what model_copy does not"


_MOST_ARGUMENTS = 5  # of a constructor: one that needs more is given what belongs together as one value


def constructors(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Every class that is constructed to do something, with what its constructor must be given.

    A frozen dataclass and a document are values: as many fields as the thing has that they say. A dataclass that is not frozen
    collects something: what has a default is not given to it.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for made in node.body:
            if isinstance(made, ast.FunctionDef) and made.name == "__init__":
                given = made.args
                every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
                yield node.name, [argument.arg for argument in every if argument is not None][1:]
        if any("dataclass" in ast.unparse(how) and "frozen=True" not in ast.unparse(how) for how in node.decorator_list):
            fields = (field for field in node.body if isinstance(field, ast.AnnAssign) and field.value is None)
            yield node.name, [ast.unparse(field.target) for field in fields]


@pytest.mark.parametrize("name", [name for name in _SOURCES if name.startswith("orchestrator/")])
def test_a_constructor_of_the_controller_takes_at_most_five_arguments(name: str) -> None:
    long = {made: given for made, given in constructors(tree_of(name)) if len(given) > _MOST_ARGUMENTS}
    assert long == {}, "bundle what belongs together, as KaggleContext does"


def test_a_constructor_with_six_arguments_is_found_however_they_are_written() -> None:
    classes = """
        class Plain:
            def __init__(self, a, b, c, d, e, f): ...
        class Mixed:
            def __init__(self, a, /, b, *c, d=0, e=0, **f): ...
        @dataclass
        class Collected:
            a: int; b: int; c: int; d: int; e: int; f: int; g: int = 0
        @dataclass(frozen=True)
        class Value:
            a: int; b: int; c: int; d: int; e: int; f: int
    """
    found = dict(constructors(ast.parse(textwrap.dedent(classes))))
    assert {made: len(given) for made, given in found.items()} == {"Plain": 6, "Mixed": 6, "Collected": 6}
