"""What all commands share: the caller's environment, the home, and output to stdout and stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.ports import BackendKind, Ports
    from state.document import Document
    from state.layout import HomeLayout

INTERRUPTED = 130  # the shells' exit code for a command that Ctrl-C ended: 128 + SIGINT

RunArgument = Annotated[str | None, typer.Argument(help="Run name or unique prefix; default: the newest run.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Run name or unique prefix; default: the newest run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, as docs/json.md describes it.")]


@dataclass(frozen=True)
class Terminal:
    """The environment of one command. Only `cli` makes it, so only `cli` reads the process's environment variables."""

    environment: Mapping[str, str]
    kinds: tuple[BackendKind, ...] | None = None
    """The registered kinds of backend; None: all that come with gemma-orch."""

    @classmethod
    def of(cls, context: typer.Context) -> Terminal:
        """Return the terminal of a command."""
        terminal = context.find_object(cls)
        assert terminal is not None, "the app's callback sets it"
        return terminal

    def home(self) -> HomeLayout:
        """Return the home of gemma-orch."""
        from orchestrator.wiring import home_layout

        return home_layout(self.environment)

    def ports(self) -> Ports:
        """Return the home's stores and backends."""
        from orchestrator.wiring import BACKENDS, wire

        return wire(self.environment, say, self.kinds or BACKENDS)

    def kind(self, name: str) -> BackendKind:
        """Return the kind of backend with this name.

        Raises:
            UserError: no kind has this name.
        """
        from orchestrator.wiring import BACKENDS, backend_kind

        return backend_kind(name, self.kinds or BACKENDS)


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ask(question: str, default: str | None, *checks: Callable[[str], object]) -> str:
    """Ask the user a question until the answer passes every check; return the answer."""
    from state.errors import UserError

    while True:
        answer = str(typer.prompt(question, default=default, err=True)).strip()
        try:
            for check in checks:
                check(answer)
        except UserError as error:
            say(f"{error.what}\nExpected: {error.expected}")
        else:
            return answer


def say(text: str) -> None:
    """Print a message on stderr; print nothing if it is empty."""
    if text:
        typer.echo(text, err=True)


def show(renderable: Any) -> None:
    """Print a table or a panel on stdout."""
    from rich.console import Console

    Console().print(renderable)


def write_json(documents: Document | Sequence[Document]) -> None:
    """Print one document, or a list of them, as JSON on stdout."""
    if isinstance(documents, Sequence):
        import json

        text = json.dumps([document.model_dump(mode="json") for document in documents], indent=1)
    else:
        text = documents.model_dump_json(indent=1)
    sys.stdout.write(text + "\n")
