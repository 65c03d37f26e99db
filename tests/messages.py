"""`python -m tests.messages` prints the message of every error that the code raises, as tests/golden/messages.txt has them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.repository import ROOT

PACKAGES = ("state", "worker", "orchestrator")
GOLDEN = ROOT / "tests" / "golden" / "messages.txt"


def texts() -> str:
    """Return all messages, one block for each module, in the order of the source; values are shown as `{...}`."""
    blocks = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found = list(_messages(path))
            if found:
                blocks.append("\n".join([f"== {path.relative_to(ROOT).as_posix()}", *found]))
    return "\n\n".join(blocks) + "\n"


def _messages(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _raises(node.func)]
    for node in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        parts = [_text(argument) for argument in node.args]
        parts = [part for part in parts if part]
        for keyword in node.keywords:
            if keyword.arg in ("expected", "remedy") and (text := _text(keyword.value)):
                parts.append(f"{'Expected' if keyword.arg == 'expected' else 'Next'}: {text}")
        if parts:
            yield f"{_name(node.func)}: " + " | ".join(parts)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _raises(function: ast.expr) -> bool:
    return _name(function).endswith("Error") and _name(function) not in {"TypeError", "ValueError", "RuntimeError", "OSError"}


def _text(value: ast.expr) -> str:
    """Return the words of an expression that makes a text, its values as `{...}`; empty when it has no words of its own."""
    match value:
        case ast.Constant(value=str() as text):
            return text.replace("\n", "\\n")
        case ast.JoinedStr(values=values):
            return "".join(
                "{" + ast.unparse(part.value) + "}" if isinstance(part, ast.FormattedValue) else _text(part) for part in values
            )
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=orelse):
            return " / ".join(filter(None, (_text(body), _text(orelse))))
        case ast.BoolOp(values=values):
            return " / ".join(filter(None, map(_text, values)))
        case _:
            return ""


if __name__ == "__main__":
    sys.stdout.write(texts())
