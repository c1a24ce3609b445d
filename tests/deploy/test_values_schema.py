"""The chart's schema of values knows every setting of the server, and nothing else."""

import copy
import json
import re
from typing import Any

import yaml

from server.settings.schema import settings_schema
from tests.deploy.programs import CHART
from tests.generated import assert_up_to_date

FILE = CHART / "values.schema.json"
OF_THE_CHART = ("host", "port", "student", "grace_s", "allow_no_keys")
"""Settings that other values decide."""


def settings_of_values() -> dict[str, object]:
    schema = copy.deepcopy(settings_schema())
    del schema["$schema"]
    for name in OF_THE_CHART:
        del schema["properties"][name]
    del schema["properties"]["keys"]["properties"]["file"]
    del schema["properties"]["cache"]["properties"]["url"]
    return schema


def remote_of_values() -> dict[str, object]:
    """A remote student's table, but for its key, which comes from a Secret, and for paths: values have no order."""
    (tables,) = [one for one in settings_schema()["properties"]["student"]["anyOf"] if one["type"] == "array"]
    schema: dict[str, Any] = copy.deepcopy(tables["items"]["properties"]["remote"])
    del schema["properties"]["key_env"]
    name = {"type": "string", "minLength": 1}
    path = {"type": "object", "properties": {"name": name, "model": name}, "required": ["name", "model"]}
    schema["properties"]["paths"] = {"type": "array", "items": {**path, "additionalProperties": False}}
    secret = {"type": "object", "properties": {"name": name, "key": name}, "required": ["name"]}
    schema["properties"]["keySecret"] = {**secret, "additionalProperties": False}
    return schema


def test_schema_has_the_settings_of_the_server() -> None:
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    schema["definitions"]["settings"] = settings_of_values()
    student = schema["definitions"]["student"]["properties"]
    student["remote"] = remote_of_values()
    student["engine"] = {"enum": ["onnx", "remote", "vllm"]}
    assert_up_to_date(FILE, json.dumps(schema, indent=2) + "\n")


def test_schema_knows_every_default_value() -> None:
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values.keys() == schema["properties"].keys() - {"global"}
    for name, value in values.items():
        known = schema["properties"][name].get("properties")
        if known is not None:
            assert value.keys() == known.keys() - {"claims"}, name


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (CHART.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert found is not None
    assert chart["appVersion"] == found[1]
