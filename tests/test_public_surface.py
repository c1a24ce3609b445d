"""What callers rely on, written into `public_surface.json`: a change of it must be a change of that file.

`REWRITE=1 pytest tests/test_public_surface.py` writes the file anew. Texts that people read are not in it.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta
from prometheus_client.metrics import MetricWrapperBase

from models import errors
from models.errors import ServingError
from server.context import Context, make_context
from server.settings.config import ServerConfig, StudentConfig
from server.wire.errors import ROUTE_CODES, status_of
from tests.generated import assert_up_to_date
from tests.public_surface.commands import describe_commands, describe_exit_statuses
from tests.public_surface.routes import describe_routes
from tests.public_surface.schemas import spell
from tests.public_surface.settings import describe_settings, spell_type
from tests.server.conftest import SCRIPT, make_engine, make_student, open_scripted

FILE = Path(__file__).with_name("public_surface.json")
WIDTH = 120


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return make_context(ServerConfig(), [open_scripted(make_student(tmp_path), make_engine(SCRIPT))])


def test_public_surface_is_as_written(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    surface = {
        **describe_routes(context),
        "commands": dict(sorted(describe_commands(monkeypatch))),
        "settings": {
            **dict(describe_settings(ServerConfig())),
            **dict(describe_settings(StudentConfig(), "student[].")),
        },
        "errors": dict(sorted(describe_errors())),
        "errors_without_a_route": {str(status): code for status, code in sorted(ROUTE_CODES.items())},
        "metrics": dict(sorted(describe_metrics(context))),
        "exit_statuses": describe_exit_statuses(tmp_path, monkeypatch),
    }
    assert_up_to_date(FILE, lay_out(surface) + "\n")


def describe_errors() -> Iterator[tuple[str, Any]]:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, ServingError):
            yield name, {"code": kind.code, "status": status_of(kind("")), "parent": kind.__mro__[1].__name__}


def describe_metrics(context: Context) -> Iterator[tuple[str, Any]]:
    for collector in list(context.metrics._registry._collector_to_names):
        if isinstance(collector, MetricWrapperBase):
            yield collector._name, {"type": collector._type, "labels": list(collector._labelnames)}
            continue
        for family in collector.collect():
            yield family.name, {"type": family.type, "labels": list(getattr(family, "_labelnames", ()))}


def lay_out(node: Any, indent: int = 0, taken: int = 0) -> str:
    """JSON with whatever fits on a line on one line; `taken` is what stands before the node on its line."""
    line = json.dumps(node, ensure_ascii=False)
    if not isinstance(node, dict | list) or not node or (indent > 1 and indent + taken + len(line) < WIDTH):
        return line
    heads = [f"{json.dumps(key)}: " for key in node] if isinstance(node, dict) else [""] * len(node)
    values = node.values() if isinstance(node, dict) else node
    rows = [
        " " * (indent + 1) + head + lay_out(value, indent + 1, len(head))
        for head, value in zip(heads, values, strict=True)
    ]
    opening, closing = "{}" if isinstance(node, dict) else "[]"
    return "\n".join([opening, ",\n".join(rows), " " * indent + closing])


def test_schemas_are_spelt_in_short() -> None:
    node = {"title": "Node", "properties": {"title": {"type": "string"}, "next": {"$ref": "#/c/Node"}}}
    schemas = {"Node": {**node, "required": ["title"], "additionalProperties": False}}
    assert spell({"$ref": "#/c/Node"}, schemas) == {"title": "string", "next?": "as around it", "(others)": "nothing"}
    number = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None, "description": "x"}
    assert spell(number) == "integer (minimum 1) | null (default null)"
    assert spell({"type": "array", "items": {"enum": ["a", "b"]}}) == ["'a' | 'b'"]


def test_layout_is_json_whose_lines_are_short() -> None:
    node = {"a": {"b": [{"c": "x" * 50} for _ in range(9)], "d": {}}, "e": [1, 2]}
    text = lay_out(node)
    assert json.loads(text) == node
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("hint", "spelt"),
    [
        (Annotated[int, Meta(ge=1)] | None, "int or null"),
        (Annotated[int | None, Meta(description="x")], "int or null"),
        (tuple[str, ...], "tuple of str"),
        (dict[str, float], "dict of str to float"),
        (Literal["a", "b"], "one of a, b"),
    ],
)
def test_types_are_spelt_without_their_bounds(hint: Any, spelt: str) -> None:
    assert spell_type(hint) == spelt
