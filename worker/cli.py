"""The command line of the worker's verbs: parses options, suggests corrections, writes to stdout."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from state.errors import GemmaOrchError, UserError, did_you_mean

Value = TypeVar("Value")
_CHOICES = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)", re.DOTALL)


class VerbParser(argparse.ArgumentParser):
    """Parses a verb's options. Does not accept abbreviated names, so that a new option never changes an old command."""

    def __init__(self, verb: str, description: str, *, epilog: str = "") -> None:
        """Make the parser of `gemma-orch VERB`.

        Args:
            verb: One word or two, such as `prepare` or `data show`.
            description: What it does.
            epilog: Further help, printed without changes.
        """
        super().__init__(
            f"gemma-orch {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._remedy = f"gemma-orch {verb} --help"

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options.

        Raises:
            UserError: an option is unknown, missing or invalid.
        """
        known = [name for action in self._actions for name in action.option_strings]
        for argument in arguments:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:  # before argparse says that another one is missing
                raise UserError(f"there is no option {name}", remedy=did_you_mean(name, known) or self._remedy)
        return self.parse_args(list(arguments))

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a UserError.

        Raises:
            UserError: always.
        """
        if match := _CHOICES.search(message):
            hint = did_you_mean(match[1], [each.strip(" '") for each in match[2].split(",")])
            raise UserError(message, remedy=hint or self._remedy)
        raise UserError(message, remedy=self._remedy)


def parsed_by(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return a `type=` for argparse from a function that raises UserErrors; their messages are kept."""

    def convert(text: str) -> Value:
        try:
            return parse(text)
        except GemmaOrchError as error:
            raise argparse.ArgumentTypeError(error.what + (f" (expected: {error.expected})" if error.expected else "")) from error

    return convert


def write_out(text: str) -> None:
    """Write to stdout; ignore a reader that has closed the pipe, such as `head`."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(text)
        sys.stdout.flush()
