"""The part of a request that is classified: the last user turn, and what was said before it."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True, frozen=True)
class Conversation:
    """`last` is what is asked now; `earlier` the user turns before it, `system` the instructions, newest last."""

    last: str
    earlier: tuple[str, ...] = ()
    system: tuple[str, ...] = ()


def conversation_of(turns: Iterable[tuple[str, str]]) -> Conversation:
    """From (role, text) pairs in order. Answers of the assistant do not count: the user's words say the task."""
    users: list[str] = []
    system: list[str] = []
    for role, text in turns:
        if not text:
            continue
        if role == "user":
            users.append(text)
        elif role in {"system", "developer"}:
            system.append(text)
    last = users.pop() if users else ""
    return Conversation(last=last, earlier=tuple(users), system=tuple(system))
