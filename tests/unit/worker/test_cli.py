from __future__ import annotations

import argparse

import pytest

from state.errors import UserError
from state.quantities import parse_size_bytes
from worker.cli import VerbParser, parsed_by, write_out


@pytest.fixture
def parser() -> VerbParser:
    parser = VerbParser("knit", "Knit.", epilog="Wool  stays\nas it is.")
    parser.add_argument("--yarn", required=True)
    parser.add_argument("--stitch", choices=("purl", "plain"))
    parser.add_argument("--size", type=parsed_by(parse_size_bytes))
    return parser


def test_options_are_read(parser: VerbParser) -> None:
    options = parser.parse(["--yarn=red", "--size", "2kB"])
    assert options == argparse.Namespace(yarn="red", stitch=None, size=2000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--yarm", "red"], "there is no option --yarm\nNext: did you mean '--yarn'?"),
        (["--qqqqqqqq"], "there is no option --qqqqqqqq\nNext: gemma-orch knit --help"),
        (["--yar=red"], "there is no option --yar\n"),
        ([], "required: --yarn\nNext: gemma-orch knit --help"),
        (["--yarn", "red", "blue"], "unrecognized arguments: blue"),
        (["--yarn", "red", "--", "--yarm"], "unrecognized arguments: "),
        (["--yarn", "red", "--stitch", "pearl"], "did you mean 'purl'?"),
        (["--yarn", "red", "--stitch", "qqqq"], "gemma-orch knit --help"),
        (["--yarn", "red", "--size", "large"], "--size: 'large' is not a size (expected: a number with its unit"),
        (["--yarn", "red", "--size", "0B"], "--size: the size '0B' is zero"),
    ],
)
def test_a_mistake_is_explained(parser: VerbParser, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as mistake:
        parser.parse(arguments)
    assert words in str(mistake.value)


def test_help_names_the_command_that_users_type(parser: VerbParser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.parse(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith("usage: gemma-orch knit ")
    assert "Wool  stays\nas it is." in said


def test_what_is_written_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    write_out("नमस्ते\n")
    assert capsys.readouterr().out == "नमस्ते\n"
