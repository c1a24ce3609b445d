"""docs/clients.md is of the clients and versions that are pinned, and says no more than the suite found."""

import re

import pytest

from tests.clients.clients import CAPABILITIES, CLIENTS, KNOWN_FAILURES, Client, pinned_versions
from tests.clients.table import ABSENT, DOCUMENT, FAILED, PASSED, Results, document, rows_of

CLIENT = CLIENTS[0]
VERSIONS = {"openai": "1.2.3"}


def found(*, failed: str | None = None, capabilities: tuple[str, ...] | None = None) -> Results:
    tried = CLIENT.capabilities if capabilities is None else capabilities
    cells = {(CLIENT.program, capability): capability != failed for capability in tried}
    return Results(cells=cells, versions={CLIENT.program: VERSIONS})


def row_in(text: str) -> str:
    return rows_of(text)[CLIENT.name, CLIENT.endpoint]


def test_table_has_a_mark_for_every_cell() -> None:
    cells = row_in(document(found(failed="tools"), "")).split(" | ")
    marks = dict(zip(CAPABILITIES, cells[3:-1], strict=True))
    assert marks.pop("load") == ABSENT
    assert marks == {name: FAILED if name == "tools" else PASSED for name in CLIENT.capabilities}
    assert cells[2] == "openai 1.2.3"


def test_table_keeps_the_rows_of_clients_that_were_left_out() -> None:
    earlier = document(found(), "")
    assert document(Results(), earlier) == earlier


def test_table_keeps_the_row_of_a_client_that_was_tried_in_part() -> None:
    earlier = document(found(failed="tools"), "")
    assert row_in(document(found(capabilities=("chat",)), earlier)) == row_in(earlier)


def test_a_cell_that_raises_has_failed() -> None:
    results = Results()
    with pytest.raises(ValueError, match="no"), results.cell(CLIENT, "chat"):
        raise ValueError("no")
    assert results.cells == {(CLIENT.program, "chat"): False}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.program)
def test_document_is_of_the_versions_that_are_pinned(client: Client) -> None:
    row = rows_of(DOCUMENT.read_text(encoding="utf-8"))[client.name, client.endpoint]
    told = set(re.findall(r"([@\w/-]+) ([\d.]+)", row.split(" | ")[2]))
    assert told
    assert told <= pinned_versions()


def test_document_has_no_red_cell_that_is_not_known() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = rows_of(text)
    red = sum(rows[client.name, client.endpoint].count(FAILED) for client in CLIENTS)
    assert red == len(KNOWN_FAILURES) <= 2
