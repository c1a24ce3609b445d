"""A broad `except` may clean up and raise again, or turn what a foreign library raises into an error of ours. All
others end a thread, a request or a side matter, and stand in a list."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "bench", "router", "engines", "models", "loadtest")
BROAD = {"Exception", "BaseException"}

ENDS = {
    "engines/loop/sequence_engine.py": 2,  # an engine's thread; every sequence is told
    "engines/loop/module_engine.py": 1,  # a step, whose sequences are told
    "engines/loop/loading.py": 1,  # the loading thread; who waits for a path is told
    "engines/loop/commands.py": 1,  # what another thread asked of the engine's; it gets the error
    "engines/vllm/engine.py": 1,  # the start of its process, which is tried again
    "server/threads.py": 2,  # work in a thread of its own; who waits for it gets the error
    "server/http/middleware.py": 1,  # a request: the traceback is logged, the client gets a 500
    "server/quality/scorer.py": 2,  # one answer, for which nobody waits, and the scorer itself, which then says so
    "server/app.py": 1,  # the server's end, which goes on without the last spans
    "server/lifecycle/student_changes.py": 2,  # adding and removing a student; the list of students tells
    "engines/remote/calls.py": 1,  # a request of a remote student, which ends with the error
    "engines/remote/engine.py": 1,  # the remote engine's thread; its requests are told, its status says why
    "bench/host.py": 1,  # a peer in a process of its own; the bench is told
}
"""The last to hear of an error: it logs the traceback and tells everybody who waits."""
SIDE_MATTERS = {
    "engines/loop/slot_moves.py": 1,  # keeping the KV of a paused sequence, which is computed again
    "server/telemetry/tracing.py": 1,  # the span of a request that was answered
    "router/router.py": 1,  # without a classifier the request takes the full path
    "router/cache/redis_store.py": 1,  # closing the connection to a server that may be gone
    "engines/grammar.py": 1,  # a panic of the library is a schema it cannot do; all else is raised
    "models/distill/run/checkpoint.py": 1,  # a damaged checkpoint gives way to the one before
}
"""What fails without harm to what it belongs to."""


def handlers(source: str) -> Iterator[ast.ExceptHandler]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            kinds = [] if node.type is None else [one.id for one in ast.walk(node.type) if isinstance(one, ast.Name)]
            if not kinds or BROAD & set(kinds):
                yield node


def raises(handler: ast.ExceptHandler) -> bool:
    """Whether it ends by raising the same error again, or another one that has it as its cause."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and (last.exc is None or last.cause is not None)


def test_broad_excepts_raise_or_are_known() -> None:
    found = Counter(
        str(file.relative_to(ROOT))
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
        for handler in handlers(file.read_text(encoding="utf-8"))
        if not raises(handler)
    )
    assert found == ENDS | SIDE_MATTERS


@pytest.mark.parametrize(
    ("body", "is_raised"),
    [
        ("except BaseException:\n    clean()\n    raise", True),
        ("except (ValueError, Exception) as error:\n    raise KeyError(1) from error", True),
        ("except Exception:\n    raise KeyError(1) from None", True),
        ("except Exception:\n    raise KeyError(1)", False),
        ("except:\n    pass", False),
        ("except Exception as error:\n    if error:\n        raise", False),
    ],
)
def test_broad_excepts_are_seen_with_how_they_end(body: str, is_raised: bool) -> None:
    (handler,) = handlers(f"try:\n    work()\n{body}\n")
    assert raises(handler) is is_raised


def test_excepts_of_named_errors_are_no_broad_ones() -> None:
    assert list(handlers("try:\n    work()\nexcept (ValueError, OSError):\n    pass\n")) == []
