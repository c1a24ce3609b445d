"""The OpenAPI document: valid, whole, and true to the structs and routes."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fastapi.openapi.models import OpenAPI
from starlette.routing import Route

from server.access.keys import ADMIN_PREFIXES, OPEN_PATHS
from server.api.endpoints import ENDPOINTS
from server.api.openapi import openapi_document
from server.app import create_app
from tests.server.conftest import Served


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(openapi_document("1.2.3")))
    return found


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_document_is_valid_openapi(document: dict[str, Any]) -> None:
    parsed = OpenAPI.model_validate(document)
    assert parsed.info.version == "1.2.3"


def test_document_has_every_route_and_no_other(served: Served) -> None:
    app = create_app(served.context)
    routes = {
        (route.path.replace(":path", ""), method)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    told = {(endpoint.path, endpoint.method.upper()) for endpoint in ENDPOINTS} | {("/openapi.json", "GET")}
    told |= {("/", "GET"), ("/console/assets/{name}", "GET")}  # the console's files, which are no API
    told |= {(path, "HEAD") for path, method in told if method == "GET"}  # which OpenAPI need not name
    assert routes == told


def test_document_references_resolve(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) == known


def test_document_says_what_bodies_may_have_beside_their_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    nulls, anything = {"type": "null"}, True
    expected = {"ChatRequest": nulls, "StreamOptions": nulls, "Message": anything, "FunctionTool": anything}
    assert {name: schemas[name]["additionalProperties"] for name in expected} == expected


def test_document_requests_list_the_fields_the_decoder_takes(document: dict[str, Any]) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.body is not None:
            schema = document["components"]["schemas"][endpoint.body.__name__]
            assert set(schema["properties"]) == set(endpoint.body.__struct_fields__)
            assert schema["additionalProperties"] == {"type": "null"}


def test_document_answers_match_what_is_sent(served: Served, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for body in (served.chat("hello").json(), served.http.get("/v1/models").json()):
        name = {"chat.completion": "ChatCompletion", "list": "ModelList"}[body["object"]]
        assert set(schemas[name]["required"]) <= set(body) <= set(schemas[name]["properties"])


def test_document_is_served_and_docs_pages_are_off(served: Served) -> None:
    assert served.http.get("/openapi.json").json()["info"]["title"] == "fenhe"
    assert served.http.get("/docs").status_code == 404


def test_document_tells_how_answers_are_routed(served: Served, document: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "math"}]
    for path, body in (("chat/completions", {"messages": messages}), ("completions", {"prompt": "math"})):
        told = document["paths"][f"/v1/{path}"]["post"]
        headers = served.post(f"/v1/{path}", {"model": "auto", **body}).headers
        sent = {name for name in headers if name.startswith("x-fenhe-")}
        assert set(told["responses"]["200"]["headers"]) == {*sent, "age", "x-fenhe-similarity", "x-fenhe-loosened"}
        assert any(parameter["name"] == "x-fenhe-task" for parameter in told["parameters"])


def test_document_route_answer_matches_what_is_sent(served: Served, document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["RouteReply"]
    assert set(served.route("math").json()) == set(schema["required"])
    assert set(schema["properties"]) == {*schema["required"], "words"}  # which come with `explain`


def test_document_says_which_endpoints_need_the_key(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            wanted: list[dict[str, list[str]]] = [{}, {"apiKey": []}, {"apiKeyHeader": []}]
            if path in OPEN_PATHS:
                wanted = []
            elif path.startswith(ADMIN_PREFIXES):
                wanted = [{"adminKey": []}]
            assert operation.get("security", []) == wanted, path
            assert ("401" in operation["responses"]) == bool(wanted), path
