"""The Kustomize base is what the chart makes of its least values, and keeps the same rules."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import Object, parse, render_text, settings_file, values_files
from tests.deploy.programs import ROOT, helm, need_program
from tests.deploy.rules import find_problems
from tests.generated import assert_up_to_date

FOLDER = ROOT / "deploy" / "kustomize"
HEAD = "# Made from the chart by tests/deploy/test_kustomize.py: change it in an overlay.\n"
OF_HELM = ("helm.sh/chart", "app.kubernetes.io/managed-by")


def without_helm(node: object) -> object:
    """Without the labels that only Helm knows, and without a namespace."""
    if isinstance(node, dict):
        return {key: without_helm(value) for key, value in node.items() if key not in (*OF_HELM, "namespace")}
    return [without_helm(one) for one in node] if isinstance(node, list) else node


def base() -> tuple[str, str]:
    """Manifests and settings."""
    (least,) = [file for file in values_files() if file.stem == "least"]
    objects = parse(render_text(least, sets={"fullnameOverride": "fenhe"}).replace("instance: prod", "instance: fenhe"))
    settings = settings_file(objects, "fenhe")
    kept = [one for one in objects if one["kind"] not in ("ConfigMap", "Pod")]
    for one in kept:
        if one["kind"] == "Deployment":
            del one["spec"]["template"]["metadata"]["annotations"]
    return HEAD + yaml.safe_dump_all([without_helm(one) for one in kept], sort_keys=False), settings


def kustomize(folder: Path) -> list[Object]:
    helm()
    program = need_program("kubectl", "helm4", fix="make .venv-deploy/helm4/.installed fetches it")
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    return parse(done.stdout)


def test_base_is_what_the_chart_makes() -> None:
    manifests, settings = base()
    assert_up_to_date(FOLDER / "base" / "fenhe.yaml", manifests)
    assert_up_to_date(FOLDER / "base" / "fenhe.toml", settings)


@pytest.mark.parametrize("name", ["base", "example"])
def test_kustomize_keeps_the_rules(name: str) -> None:
    assert find_problems(kustomize(FOLDER / name)) == []


def test_overlay_arrives() -> None:
    (one,) = [one for one in kustomize(FOLDER / "example") if one["kind"] == "Deployment"]
    container = one["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/fenhe:0.1.0-full"
    assert one["spec"]["replicas"] == 3
    assert {"name": "FENHE_ENGINE__MAX_RUNNING", "value": "16"} in container["env"]
