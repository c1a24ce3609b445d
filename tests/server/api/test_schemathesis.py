"""Our OpenAPI document held against the running server by schemathesis: hundreds of requests per operation, made of the
document's own schemas, right ones and wrong ones."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from engines.scripted import Line
from models.errors import QueueFull
from models.student.manifest import write_manifest
from server.access.keys import OPEN_PATHS
from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.openapi import openapi_document
from server.settings.config import AdminConfig, KeysConfig, Limits, ServerConfig, StudentConfig
from server.students.admission_gate import DEADLINE_HEADER
from server.students.open_student import Opened
from tests.server.conftest import (
    SCRIPT,
    STUDENT,
    Served,
    Start,
    make_engine,
    make_manifest,
    make_student,
    open_scripted,
    run_server,
)
from tests.server.fuzzing import EXAMPLES

ADMIN, API = "admin-key", "fk-key"
ADMIN_HEADER = {"authorization": f"Bearer {ADMIN}"}
SPARE = "spare"
TRUTH = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHECKS = [not_a_server_error, *TRUTH, negative_data_rejection, unsupported_method]
CONFIG = SchemathesisConfig.from_dict(
    {
        **({"seed": 5} if EXAMPLES is None else {}),
        "generation": {
            "max-examples": 12 if EXAMPLES is None else int(EXAMPLES),
            "deterministic": EXAMPLES is None,
            "with-security-parameters": False,
            "allow-extra-parameters": False,
        },
        "phases": {"stateful": {"enabled": False}},
    }
)


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with names and ids that this server has, so that right requests are answered and not just refused.
    What is outside of it is refused all the same."""
    models = {"enum": ["auto", STUDENT, f"{STUDENT}:shallow"]}
    for endpoint in ENDPOINTS:
        schema = None if endpoint.body is None else document["components"]["schemas"][endpoint.body.__name__]
        if schema is not None and "model" in schema["properties"]:
            schema["properties"]["model"] = models
        for parameter in document["paths"][endpoint.path][endpoint.method]["parameters"]:
            if parameter["in"] == "path":
                parameter["schema"] = {"enum": [SPARE, "nobody"]} if endpoint.needs_admin_key else models
    document["components"]["schemas"]["DetokenizeRequest"]["properties"]["tokens"]["items"]["maximum"] = 257
    return document


DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(openapi_document("1")))
API_SCHEMA = schemathesis.openapi.from_dict(narrowed(json.loads(json.dumps(DOCUMENT))), config=CONFIG)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def open_any(config: StudentConfig) -> Opened:
    assert config.name is not None
    assert config.folder is not None
    return open_scripted(make_student(config.folder, config.name), make_engine(SCRIPT, student=config.name))


def opened(folder: Path, *names: str) -> list[Opened]:
    return [open_scripted(make_student(folder, name), make_engine(SCRIPT, student=name)) for name in names]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with everything switched on that has endpoints."""
    config = ServerConfig(admin=AdminConfig(key_sha256=digest(ADMIN)), grace_s=0.0)
    with run_server(opened(tmp_path_factory.mktemp("pool"), STUDENT, SPARE), config, opener=open_any) as running:
        yield running


BY_ID = {endpoint.id: endpoint for endpoint in ENDPOINTS}


def hurried(case: Any) -> bool:
    """Whether it has a valid deadline that it would miss: 504 is then the right answer."""
    given = str((case.headers or {}).get(DEADLINE_HEADER, ""))
    return given.isascii() and given.isdigit() and 0 < int(given) < 60_000


@API_SCHEMA.parametrize()
def test_server_keeps_to_its_document(case: Any, whole: Served) -> None:
    headers = ADMIN_HEADER | ({DEADLINE_HEADER: "60000"} if hurried(case) else {})
    response = case.call(base_url=whole.url, headers=headers)
    case.validate_response(response, checks=CHECKS)


def call(served: Served, endpoint: Endpoint, **headers: str) -> int:
    """Send what the document gives as an example, and hold the answer to the document."""
    names = {name: value for name, value in {"model": "auto", "name": SPARE}.items() if f"{{{name}}}" in endpoint.path}
    body: dict[str, Any] = {}
    if endpoint.body is not None:
        body = {"body": endpoint.example or {"folder": "nowhere"}, "media_type": "application/json"}
    described = API_SCHEMA[endpoint.path][endpoint.method.upper()]
    case = described.Case(path_parameters=names, **body)
    response = case.call(base_url=served.url, headers=headers)
    case.validate_response(response, checks=TRUTH)
    return response.status_code


def test_examples_of_the_document_are_answered(whole: Served) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.example is not None or endpoint.path.startswith("/v1/"):
            assert call(whole, endpoint) == endpoint.status, endpoint.id


def test_added_student_is_told_as_documented(whole: Served, tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest("third"))
    response = whole.http.post("/admin/students", json={"folder": str(tmp_path)}, headers=ADMIN_HEADER)
    assert response.status_code == 202
    API_SCHEMA["/admin/students"]["POST"].Case().validate_response(response, checks=TRUTH)


def test_server_with_keys_keeps_to_its_document(tmp_path: Path) -> None:
    keys = KeysConfig(sha256=(digest(API),), metrics=True)
    config = ServerConfig(keys=keys, admin=AdminConfig(key_sha256=digest(ADMIN)))
    with run_server(opened(tmp_path, STUDENT), config) as served:
        for endpoint in ENDPOINTS:
            is_open = endpoint.path in OPEN_PATHS
            assert call(served, endpoint) == (200 if is_open else 401), endpoint.id
            with_key = 403 if endpoint.needs_admin_key else endpoint.status
            assert call(served, endpoint, authorization=f"Bearer {API}") == with_key, endpoint.id


def test_server_without_admin_endpoints_keeps_to_its_document(tmp_path: Path) -> None:
    with run_server(opened(tmp_path, STUDENT), ServerConfig()) as served:
        for endpoint in ENDPOINTS:
            assert call(served, endpoint) == (404 if endpoint.needs_admin_key else endpoint.status), endpoint.id


def test_server_that_is_loading_keeps_to_its_document(start: Start) -> None:
    served = start(is_loaded=False)
    assert [call(served, BY_ID[id]) for id in ("health", "ready", "startup")] == [200, 503, 200]


def test_server_with_a_sick_engine_keeps_to_its_document(start: Start) -> None:
    served = start()
    served.engine.sicken("it broke")
    assert [call(served, BY_ID[id]) for id in ("health", "ready", "startup")] == [503, 503, 200]
    generating = [endpoint for endpoint in ENDPOINTS if endpoint.is_routed]
    assert {call(served, endpoint) for endpoint in generating} == {503}


def test_server_that_is_stopping_keeps_to_its_document(whole: Served) -> None:
    whole.context.drain.is_draining = True
    try:
        for endpoint in ENDPOINTS:
            is_work = endpoint.path.startswith(("/v1/", "/tokenize", "/detokenize", "/readyz"))
            assert (call(whole, endpoint, **ADMIN_HEADER) == 503) == is_work, endpoint.id
    finally:
        whole.context.drain.is_draining = False


def test_server_that_is_full_keeps_to_its_document(start: Start) -> None:
    served = start({"spiders": Line(refusal=QueueFull("too many"))})
    for endpoint in ENDPOINTS:
        if endpoint.is_routed:
            assert call(served, endpoint) == 429


def test_late_answer_keeps_to_the_document(start: Start) -> None:
    served = start({"spiders": Line(pieces=("w ",) * 50, delay_s=0.05)}, limits=Limits(request_timeout_s=0.05))
    for endpoint in ENDPOINTS:
        if endpoint.is_routed:
            assert call(served, endpoint) == 504


def test_served_document_is_the_one_under_test(whole: Served) -> None:
    served = whole.http.get("/openapi.json").json()
    assert served | {"info": None} == DOCUMENT | {"info": None}
