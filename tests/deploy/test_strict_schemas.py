"""Every rendered object against Kubernetes' own schemas, custom resources against their models, by other people's
programs: strictly, so that an unknown field is found too. Slow checks: `make test-deploy`."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.deploy.chart import Object, Objects, name_of, parse, render_text, values_files
from tests.deploy.programs import helm, need_program

pytestmark = pytest.mark.deploy

HERE = Path(__file__).parent
CUSTOM = ("keda.sh/", "monitoring.coreos.com/", "gateway.networking.k8s.io/")
KUBERNETES = ("1.31", "1.33", "1.37")
INSTALLED = "make test-deploy installs it"


def is_custom(one: Object) -> bool:
    return bool(one["apiVersion"].startswith(CUSTOM))


def strict_problems(objects: Objects, kube: str, folder: Path) -> str:
    """What kubernetes-validate says. An object that it does not know is only a warning to it, and a problem here."""
    program = need_program("kubernetes-validate", "validate", fix=INSTALLED)
    file = folder / "objects.yaml"
    file.write_text("\n---\n".join(json.dumps(one) for one in objects if not is_custom(one)))
    command = [program, "--strict", "--kubernetes-version", kube, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    return said if done.returncode or "WARN" in said else ""


def custom_problems(objects: Objects) -> list[str]:
    node = need_program("node", fix="install Node.js 20 or later")
    if not (HERE / "crds" / "node_modules").exists():
        pytest.skip(f"the models of custom resources are not here: {INSTALLED}")
    done = subprocess.run(
        [node, str(HERE / "crds" / "check.mjs")],
        input=json.dumps([one for one in objects if is_custom(one)]),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("kube", KUBERNETES)
@pytest.mark.parametrize("file", values_files(), ids=lambda file: file.stem)
def test_objects_are_what_kubernetes_knows(file: Path, kube: str, version: int, tmp_path: Path) -> None:
    objects = parse(render_text(file, kube=f"{kube}.0", program=helm(version)))
    assert strict_problems(objects, kube, tmp_path) == ""


def test_custom_resources_are_what_their_operators_know() -> None:
    objects = [one for file in values_files() for one in parse(render_text(file)) if is_custom(one)]
    assert {one["kind"] for one in objects} >= {"ScaledObject", "ServiceMonitor", "PodMonitor", "HTTPRoute"}
    assert custom_problems(objects) == []


def test_both_releases_of_helm_make_the_same_objects() -> None:
    for file in values_files():
        three, four = ({name_of(one): one for one in parse(render_text(file, program=helm(v)))} for v in (3, 4))
        assert three == four


@pytest.mark.parametrize(
    ("old", "new"), [("replicas: 3", "replicas: three"), ("revisionHistoryLimit", "revisionLimit")]
)
def test_schemas_find_wrong_types_and_unknown_fields(old: str, new: str, tmp_path: Path) -> None:
    (groups,) = [file for file in values_files() if file.stem == "groups"]
    text = render_text(groups)
    assert old in text
    assert strict_problems(parse(text.replace(old, new)), "1.33", tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("pollingInterval", "pollInterval"), ("cooldownPeriod: 300", "cooldownPeriod: soon"), ("15s", "often")],
)
def test_models_find_wrong_types_and_unknown_fields(old: str, new: str) -> None:
    (everything,) = [file for file in values_files() if file.stem == "everything"]
    text = render_text(everything)
    assert old in text
    assert custom_problems(parse(text.replace(old, new)))
