"""Images built for the tests, and containers run as Kubernetes would run them: podman's flags from a pod's fields."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.chart import Object
from tests.deploy.programs import ROOT, TOOLS, need_program
from tests.deploy.quantities import quantity

BASE = "docker.io/library/python:3.11.14-slim-bookworm"
VLLM_BASE = "docker.io/vllm/vllm-openai:v0.33.0"
STORE = Path(os.environ.get("IMAGES_FOLDER", TOOLS / "images"))
"""Layers stay there between runs."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
HERE = Path(__file__).parent
FIX = "make test-deploy DEBIAN=1 installs it"


def need_builders() -> dict[str, str]:
    """The environment in which buildah and podman use a store of our own. Skips where images cannot be built."""
    for name in ("buildah", "podman", "runc", "mmdebstrap"):
        need_program(name, fix=FIX)
    if os.geteuid() != 0:
        pytest.skip("building and running images takes root here")
    STORE.mkdir(parents=True, exist_ok=True)
    file = STORE / "storage.conf"
    file.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE}/store"\nrunroot = "{STORE}/run"\n')
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(file)}


def build(environ: Mapping[str, str], *variants: str) -> None:
    """By the script that `make image` runs, on a stand-in base where the real one cannot be pulled."""
    tag_standin(environ, BASE)
    options = f"--isolation chroot --pull-never --layers --volume {CERTIFICATES}:{CERTIFICATES}:ro"
    subprocess.run(
        [ROOT / "deploy" / "images" / "build.sh", *variants],
        env={**environ, "BUILDER": "buildah", "BUILD_OPTIONS": options},
        check=True,
        timeout=1800,
        stdout=subprocess.DEVNULL,
    )


def tag_standin(environ: Mapping[str, str], name: str) -> None:
    """Make an image of this name from Debian's packages, unless there is one."""
    if subprocess.run(["buildah", "inspect", name], env=environ, capture_output=True, check=False).returncode:
        subprocess.run([HERE / "standin_base.sh", STORE, name], env=environ, check=True, timeout=900)


def size_bytes(environ: Mapping[str, str], image: str) -> int:
    done = subprocess.run(["podman", "inspect", image], env=environ, capture_output=True, text=True, check=True)
    size: int = json.loads(done.stdout)[0]["Size"]
    return size


@dataclass(slots=True, kw_only=True, frozen=True)
class Running:
    """A container that was started."""

    id: str
    environ: Mapping[str, str]

    def podman(self, *arguments: str, limit_s: float = 60) -> str:
        done = subprocess.run(
            ["podman", *arguments], env=self.environ, capture_output=True, text=True, check=True, timeout=limit_s
        )
        return done.stdout.strip()

    def status_fields(self) -> dict[str, str]:
        """What the kernel says of its first process."""
        pid = self.podman("inspect", "--format", "{{.State.Pid}}", self.id)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def wait(self, limit_s: float) -> int:
        """Its exit status. Raises: TimeoutExpired."""
        return int(self.podman("wait", self.id, limit_s=limit_s))

    def log(self) -> str:
        done = subprocess.run(["podman", "logs", self.id], env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


# What this machine lacks, none of which a kubelet needs: limits that may not be raised, systemd, a network of its own.
MACHINE = ("--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--no-healthcheck")
RUNTIME = ("--cgroup-manager", "cgroupfs", "--runtime", "runc")


def restrictions(pod: Object, container: Object) -> list[str]:
    """The security contexts and the memory limit of a container, as flags."""
    own, shared = container["securityContext"], pod["securityContext"]
    flags = ["--user", f"{shared['runAsUser']}:{shared['runAsGroup']}"]
    flags += [f"--cap-drop={name}" for name in own["capabilities"]["drop"]]
    flags += ["--read-only", "--read-only-tmpfs=false"] if own["readOnlyRootFilesystem"] else []
    flags += [] if own["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
    flags += ["--memory", str(int(quantity(container["resources"]["limits"]["memory"])))]
    empty = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume}
    for mount in container["volumeMounts"]:
        if mount["name"] in empty:
            size = int(quantity(empty[mount["name"]]["sizeLimit"]))
            flags += ["--tmpfs", f"{mount['mountPath']}:size={size},mode=1777"]
    return flags


@contextlib.contextmanager
def started(
    environ: Mapping[str, str], flags: Sequence[str], image: str, arguments: Sequence[str]
) -> Iterator[Running]:
    command = ["podman", *RUNTIME, "run", "--detach", "--pids-limit", "256", *MACHINE, *flags, image, *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    running = Running(id=done.stdout.strip(), environ=environ)
    try:
        yield running
    finally:
        subprocess.run(["podman", *RUNTIME, "rm", "--force", running.id], env=environ, check=False, capture_output=True)
