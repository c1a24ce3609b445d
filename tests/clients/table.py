"""What became of every cell, and docs/clients.md, which is written from it.

Clients that a run left out keep the row that they have there.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.clients.clients import CAPABILITIES, CLIENTS, KNOWN_FAILURES, ROOT, Client

DOCUMENT = ROOT / "docs" / "clients.md"
PASSED, FAILED, ABSENT = "✓", "✗", "–"

_BEFORE = """# Clients

Written by the suite itself: `REWRITE=1 make test-clients` (`ALL=1` with the large ones). It installs the clients that
are pinned in `tests/clients/requirements/` and `tests/clients/package.json`, starts servers, and judges by structure
what each client makes of their answers: ✓, it works; ✗, it does not; –, the client has no such thing. `chat`, `stream`,
`structured`, and all that lm-eval and benchmarks do, run against `fenhe serve` with the default student; the rest, and
all of Codex, against a scripted one, so that an agent's whole loop, an error in the middle of a stream and a stream
without end are the same every time.

| capability | what is done |
|---|---|
{capabilities}

| client | endpoint | versions | {names} | date |
|---|---|---|{lines}|---|
"""
_ROW = re.compile(r"^\| (?P<name>[^|]+) \| `(?P<endpoint>[^|]+)` \|.*\|$", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class Results:
    """Outcomes by program and capability, and versions by program."""

    cells: dict[tuple[str, str], bool] = field(default_factory=dict)
    versions: dict[str, Mapping[str, str]] = field(default_factory=dict)

    @contextlib.contextmanager
    def cell(self, client: Client, capability: str) -> Iterator[None]:
        """Passed if nothing is raised within."""
        self.cells[client.program, capability] = False
        yield
        self.cells[client.program, capability] = True

    def is_whole(self, client: Client) -> bool:
        """Whether every cell of a client was tried."""
        return all((client.program, capability) in self.cells for capability in client.capabilities)


def report(results: Results) -> None:
    """Write the document, if that is wanted."""
    if os.environ.get("REWRITE") == "1":
        DOCUMENT.write_text(document(results, DOCUMENT.read_text() if DOCUMENT.exists() else ""), encoding="utf-8")


def document(results: Results, earlier: str) -> str:
    kept = rows_of(earlier)
    rows = [
        row_of(results, client) if results.is_whole(client) else kept.get((client.name, client.endpoint))
        for client in CLIENTS
    ]
    text = _BEFORE.format(
        capabilities="\n".join(f"| `{name}` | {meaning} |" for name, meaning in CAPABILITIES.items()),
        names=" | ".join(CAPABILITIES),
        lines="|".join("---" for _ in CAPABILITIES),
    )
    return text + "".join(f"{row}\n" for row in rows if row is not None) + notes()


def rows_of(text: str) -> dict[tuple[str, str], str]:
    """The rows of clients in a document, by name and endpoint."""
    return {(row["name"], row["endpoint"]): row.group() for row in _ROW.finditer(text)}


def row_of(results: Results, client: Client) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results.versions[client.program].items())
    marks = [_mark(results.cells.get((client.program, capability))) for capability in CAPABILITIES]
    cells = [client.name, f"`{client.endpoint}`", versions, *marks, f"{datetime.now(UTC):%Y-%m-%d}"]
    return f"| {' | '.join(cells)} |"


def _mark(passed: bool | None) -> str:
    return ABSENT if passed is None else PASSED if passed else FAILED


def notes() -> str:
    told = [f"- {client.name}, `{client.endpoint}`: {client.note}" for client in CLIENTS if client.note]
    told += [f"- {program}, {capability} {FAILED}: {why}" for (program, capability), why in KNOWN_FAILURES.items()]
    return "\n## Notes\n" + "\n".join(told) + "\n"
