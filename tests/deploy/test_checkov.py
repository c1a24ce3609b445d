"""checkov's rules of hardening on everything that is rendered, hadolint and checkov on the Dockerfiles."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.chart import render_text, values_files
from tests.deploy.programs import ROOT, need_program

pytestmark = pytest.mark.deploy

ACCEPTED = {
    "CKV_K8S_11": "no CPU limit: throttling delays every token, and requests share the CPU fairly",
    "CKV_K8S_15": "tags of released images do not move, so nodes need not ask the registry at every start",
    "CKV_K8S_43": "a digest is the user's to give: image.digest",
    "CKV_K8S_35": "remote students and Redis take their keys from variables; API keys come as a file",
    "CKV_K8S_22": "NVIDIA's runtime writes into the root of a GPU pod; rules.py holds the others to it",
    "CKV2_K8S_6": "the pod of `helm test` has no policy; rules.py holds workloads to theirs",
    "CKV_K8S_21": "the namespace is helm's",
    "CKV_K8S_8": "a pod of `helm test` ends by itself",
    "CKV_K8S_9": "a pod of `helm test` ends by itself",
    "CKV_DOCKER_7": "the tag stands in an argument",
}
IMAGES = sorted((ROOT / "deploy" / "images").glob("Dockerfile*"))


def checkov(folder: Path, framework: str) -> "subprocess.CompletedProcess[str]":
    program = need_program("checkov", "checkov", fix="make test-deploy installs it")
    command = [program, "--directory", str(folder), "--framework", framework, "--skip-download", "--compact", "--quiet"]
    command += ["--skip-check", ",".join(ACCEPTED)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_rendered_objects_are_hardened(tmp_path: Path) -> None:
    for file in values_files():
        (tmp_path / file.name).write_text(render_text(file))
    done = checkov(tmp_path, "kubernetes")
    assert done.returncode == 0, done.stdout[-6000:]


def test_what_is_not_hardened_is_found(tmp_path: Path) -> None:
    (least, *_) = [file for file in values_files() if file.stem == "least"]
    text = render_text(least)
    (tmp_path / "least.yaml").write_text(text.replace("allowPrivilegeEscalation: false", "privileged: true"))
    assert "CKV_K8S_16" in checkov(tmp_path, "kubernetes").stdout


def test_dockerfiles_are_hardened() -> None:
    done = checkov(IMAGES[0].parent, "dockerfile")
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
def test_dockerfiles_pass_their_linter(file: Path) -> None:
    program = need_program("hadolint", "validate", fix="make test-deploy installs it")
    done = subprocess.run([program, str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_linter_finds_an_unpinned_base(tmp_path: Path) -> None:
    program = need_program("hadolint", "validate", fix="make test-deploy installs it")
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python:latest\nRUN cd /tmp && pip install x\n")
    assert subprocess.run([program, str(file)], capture_output=True, check=False, timeout=60).returncode == 1
