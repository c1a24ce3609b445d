"""How images are built, without building one: which program does it, what is pinned."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.programs import ROOT

FOLDER = ROOT / "deploy" / "images"
EXTRAS = ("redis", "otel", "remote")


def build(
    folder: Path, programs: dict[str, str], *variants: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """build.sh where only these programs are, each a shell script, beside those of the system that it needs."""
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    for name in ("sed", "git", "dirname", "sh"):
        found = next(Path(place) / name for place in os.defpath.split(":") if (Path(place) / name).exists())
        (folder / name).symlink_to(found)
    environ = {"PATH": str(folder), **variables}
    return subprocess.run(
        [str(folder / "sh"), str(FOLDER / "build.sh"), *variants],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_both_images_are_built_by_the_first_program_that_works(tmp_path: Path) -> None:
    programs = {"docker": '[ "$1" = build ] && echo no; exit 1', "podman": 'echo "podman $@"', "buildah": "exit 1"}
    done = build(tmp_path, programs)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("podman build")]
    assert [re.findall(r"--target (\w+) --tag (\S+)", line) for line in lines] == [
        [("slim", "localhost/fenhe:0.1.0-slim")],
        [("full", "localhost/fenhe:0.1.0-full")],
    ]
    assert all("--format docker" in line for line in lines), "other formats have no HEALTHCHECK"


def test_name_and_options_are_the_callers(tmp_path: Path) -> None:
    programs = {"buildah": 'echo "buildah $@"'}
    done = build(tmp_path, programs, "vllm", IMAGE="registry.example/fenhe", BUILD_OPTIONS="--pull-never")
    assert "buildah bud --format docker --pull-never" in done.stdout
    assert "--tag registry.example/fenhe:0.1.0-vllm --file deploy/images/Dockerfile.vllm" in done.stdout


def test_no_builder_is_told(tmp_path: Path) -> None:
    done = build(tmp_path, {})
    assert done.returncode == 1
    assert "install one of them" in done.stderr


def test_everything_that_images_install_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (FOLDER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    names = {Requirement(one).name.lower().replace("_", "-") for one in wanted}
    assert names - pinned == set()


@pytest.mark.parametrize("file", sorted(FOLDER.glob("Dockerfile*")), ids=lambda file: file.name)
def test_images_install_these_extras_and_run_as_nobody(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert f'".[{",".join(EXTRAS)}]"' in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    bases = re.findall(r"^ARG \w+_IMAGE=(.+)$", text, re.MULTILINE)
    assert bases
    assert all(re.search(r"(@sha256:|:v?\d+\.\d+\.\d+)", base) for base in bases)
