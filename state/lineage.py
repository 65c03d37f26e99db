"""Pure functions over the lineage: the chain of checkpoints by parent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from state.errors import UserError, did_you_mean, shown


@dataclass(frozen=True)
class TreeLine:
    """One checkpoint in a drawing of the lineage."""

    id: str
    depth: int
    """Number of forks between it and the root."""


def ancestors(checkpoint: str | None, parents: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a checkpoint and its known ancestors, newest first."""
    seen: set[str] = set()
    while checkpoint is not None and checkpoint in parents and checkpoint not in seen:
        yield checkpoint
        seen.add(checkpoint)
        checkpoint = parents[checkpoint]


def is_ancestor(older: str, newer: str | None, parents: Mapping[str, str | None]) -> bool:
    """Return whether `older` is `newer` or one of its ancestors."""
    return older in ancestors(newer, parents)


def tree(parents: Mapping[str, str | None], order: Sequence[str], head: str | None = None) -> tuple[TreeLine, ...]:
    """Return the lineage as lines, parents before children; a fork is one level deeper than its parent.

    Args:
        parents: Parent by id; a parent that is not in the mapping makes a root.
        order: The ids in the order in which siblings are drawn.
        head: The checkpoint whose ancestors form the trunk. Off the trunk, a checkpoint's first child continues its line.
    """
    trunk = set(ancestors(head, parents))
    children: dict[str | None, list[str]] = {}
    for checkpoint in order:
        parent = parents[checkpoint]
        children.setdefault(parent if parent in parents else None, []).append(checkpoint)
    lines: list[TreeLine] = []
    # A stack, not recursion: a lineage is as deep as it has checkpoints.
    stack = [(root, 0) for root in reversed(children.get(None, []))]
    while stack:
        checkpoint, depth = stack.pop()
        lines.append(TreeLine(checkpoint, depth))
        following = children.get(checkpoint, [])
        heir = next((child for child in following if child in trunk), None)
        if heir is None and checkpoint not in trunk and following:
            heir = following[0]
        # The heir goes to the bottom of the stack: forks are drawn before the line continues.
        forks = [child for child in following if child != heir]
        stack.extend([(heir, depth)] if heir is not None else [])
        stack.extend((child, depth + 1) for child in forks)
    return tuple(lines)


def resolve(prefix: str, known: Iterable[str], kind: str) -> str:
    """Return the only known id that equals or begins with the prefix.

    Args:
        prefix: What the user typed.
        known: All ids.
        kind: What the ids name, for the message: `checkpoint`, `run`.

    Raises:
        UserError: no id matches, or several do.
    """
    ids = sorted(known)
    if prefix in ids:
        return prefix
    matches = [candidate for candidate in ids if candidate.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"{shown(prefix)} begins {len(matches)} {kind}s: {', '.join(matches[:4])}{' ...' if len(matches) > 4 else ''}",
            remedy="type more of it",
        )
    hint = did_you_mean(prefix, ids)
    raise UserError(f"there is no {kind} {shown(prefix)}" + (f"; {hint}" if hint else ""))
