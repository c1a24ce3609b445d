"""Renders the chart, and what to render: the values files of its folder `ci/` and the examples."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.programs import CHART, ROOT, helm

Object = dict[str, Any]
Objects = Sequence[Object]

RELEASE = "prod"
NAMESPACE = "llm"
EXAMPLES = ROOT / "deploy" / "helm" / "examples"
LEAST = {"image.repository": "localhost/fenhe", "keys.allowNone": "true"}
"""What nobody but the user knows."""


class RenderError(Exception):
    """What helm said."""


def values_files() -> list[Path]:
    files = [*sorted((CHART / "ci").glob("*.yaml")), *sorted(EXAMPLES.glob("*.yaml"))]
    assert len(files) > 4
    return files


def render_text(
    *files: Path, sets: Mapping[str, str] | None = None, kube: str = "1.33.0", program: str | None = None
) -> str:
    """The manifests. Raises: RenderError."""
    command = [program or helm(), "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kube]
    command += [part for file in files for part in ("--values", str(file))]
    command += [part for name, value in (sets or {}).items() for part in ("--set-json", f"{name}={as_json(value)}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


def as_json(value: str) -> str:
    """A value of `sets`: JSON as it is, anything else as a text."""
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value)
    return value


def render_notes(*files: Path) -> str:
    """What `helm install` would tell. Helm 4 alone says it without a cluster."""
    command = [helm(), "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client"]
    command += [part for file in files for part in ("--values", str(file))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.partition("NOTES:\n")[2]


def render(*files: Path, sets: Mapping[str, str] | None = None, kube: str = "1.33.0") -> list[Object]:
    return parse(render_text(*files, sets=sets, kube=kube))


def parse(text: str) -> list[Object]:
    return [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one is not None]


def of_kind(objects: Objects, *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def name_of(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def workloads(objects: Objects) -> list[Object]:
    return of_kind(objects, "Deployment", "StatefulSet")


def pods(objects: Objects) -> Iterator[tuple[str, Object, Mapping[str, str]]]:
    """Name, spec and labels of every pod that would be made."""
    for one in workloads(objects):
        template = one["spec"]["template"]
        yield name_of(one), template["spec"], template["metadata"]["labels"]
    for one in of_kind(objects, "Pod"):
        yield name_of(one), one["spec"], one["metadata"]["labels"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def is_fenhe(container: Object) -> bool:
    return bool(container["name"] == "fenhe")


def settings_file(objects: Objects, name: str) -> str:
    """The settings of the workload of this name."""
    (found,) = [one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == name]
    text: str = found["data"]["fenhe.toml"]
    return text
