"""Every route: who may ask, parameters, body, replies by status, and the statuses that are refusals."""

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route
from starlette.testclient import TestClient

from server.app import create_app
from server.context import Context
from tests.public_surface.schemas import field, spell


def describe_routes(context: Context) -> dict[str, Any]:
    """Every route of the application, with what its document says of it."""
    app = create_app(context)
    document = TestClient(app, base_url="http://localhost").get("/openapi.json").json()
    told = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    routes = {
        f"{method} {route.path.replace(':path', '')}"
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    schemas = document["components"]["schemas"]
    error_body = _bodies(told["POST /v1/chat/completions"]["responses"]["400"], schemas)
    return {
        "error_body": error_body,
        "routes": {
            route: _describe_route(told.get(route, {}), schemas, error_body) for route in sorted(routes | set(told))
        },
    }


def _describe_route(told: Mapping[str, Any], schemas: Mapping[str, Any], error_body: Any) -> dict[str, Any]:
    replies = {status: _bodies(reply, schemas) for status, reply in told.get("responses", {}).items()}
    headers = {status: sorted(reply.get("headers", ())) for status, reply in told.get("responses", {}).items()}
    parameters = told.get("parameters", ())
    described = {
        "keys": [" and ".join(one) or "none" for one in told.get("security", ())],
        "parameters": {
            f"{one['in']} {field(one['name'], one['required'])}": spell(one["schema"]) for one in parameters
        },
        "body": _bodies(told.get("requestBody", {}), schemas),
        "replies": {status: body for status, body in replies.items() if body != error_body},
        "headers": {status: names for status, names in headers.items() if names},
        "refusals": sorted(int(status) for status, body in replies.items() if body == error_body),
    }
    return {part: value for part, value in described.items() if value}


def _bodies(message: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: spell(next(iter(one.values())), schemas) for kind, one in message.get("content", {}).items()}
