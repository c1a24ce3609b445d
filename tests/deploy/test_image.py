"""The image, really built, and run as the chart's own pod would run it: user, read-only root, no capabilities, memory
limit, probes, SIGTERM with streams in flight. The base is a stand-in made of Debian's packages."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import Object, Objects, render, settings_file, workloads
from tests.deploy.fleet.fleet import free_ports
from tests.deploy.images import (
    VLLM_BASE,
    Running,
    build,
    need_builders,
    restrictions,
    size_bytes,
    started,
    tag_standin,
)
from tests.deploy.programs import CHART
from tests.deploy.server_facts import PROBES

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(2400)]

FULL, SLIM = "localhost/fenhe:0.1.0-full", "localhost/fenhe:0.1.0-slim"
NUM_STREAMS = 8


@pytest.fixture(scope="module")
def environ() -> dict[str, str]:
    environ = need_builders()
    build(environ, "slim", "full")
    return environ


@pytest.fixture(scope="module")
def objects() -> Objects:
    return render(CHART / "ci" / "open.yaml", sets={"drain.graceSeconds": "40"})


@pytest.fixture(scope="module")
def pod(objects: Objects) -> Object:
    (one,) = workloads(objects)
    spec: Object = one["spec"]["template"]["spec"]
    return spec


def server_flags(objects: Objects, pod: Object, folder: Path, port: int) -> list[str]:
    """The chart's settings, but on loopback."""
    folder.chmod(0o755)
    file = folder / "fenhe.toml"
    file.write_text(settings_file(objects, "prod-fenhe"))
    (container,) = pod["containers"]
    variables = {one["name"]: one.get("value", "2") for one in container["env"]}
    variables |= {"FENHE_HOST": "127.0.0.1", "FENHE_PORT": str(port)}
    flags = restrictions(pod, container)
    flags += ["--volume", f"{folder}:/etc/fenhe/settings:ro"]
    flags += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    return flags


@pytest.fixture
def served(environ: Mapping[str, str], objects: Objects, pod: Object, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    (port,) = free_ports(1)
    (container,) = pod["containers"]
    with started(environ, server_flags(objects, pod, tmp_path, port), FULL, container["args"]) as running:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/readyz", running, 180)
        yield running, url


def wait_for(url: str, running: Running, limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while status_of(url) != 200:
        assert time.monotonic() < end_s, running.log()[-3000:]
        time.sleep(0.2)


def status_of(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            status: int = reply.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def stream(url: str, num_tokens: int) -> Iterator[str]:
    body = {"model": "auto", "stream": True, "max_tokens": num_tokens, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "Tell me a long story."}]
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        for line in reply:
            if line.startswith(b"data: "):
                yield line.decode().removeprefix("data: ").strip()


def test_container_is_as_the_pod_says(served: tuple[Running, str]) -> None:
    running, url = served
    fields = running.status_fields()
    assert fields["Uid"].split("\t")[0] == "10001"
    assert int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    for path in PROBES.values():
        assert status_of(f"{url}{path}") == 200
    assert "native operators ready" in running.log()


def test_hangup_from_within_has_keys_and_settings_read_again(served: tuple[Running, str]) -> None:
    """As docs/kubernetes.md says: kubectl exec POD -- sh -c 'kill -HUP 1'."""
    running, _ = served
    running.podman("exec", running.id, "sh", "-c", "kill -HUP 1")
    end_s = time.monotonic() + 20
    while "settings reloaded" not in running.log():
        assert time.monotonic() < end_s, running.log()[-2000:]
        time.sleep(0.1)


def test_sigterm_lets_streams_finish(served: tuple[Running, str], pod: Object) -> None:
    running, url = served
    ends: list[str] = []
    is_running = threading.Barrier(NUM_STREAMS + 1, timeout=60)

    def follow() -> None:
        last = ""
        for number, event in enumerate(stream(url, 150)):
            if number == 3:
                is_running.wait()
            last = event
        ends.append(last)

    threads = [threading.Thread(target=follow, daemon=True) for _ in range(NUM_STREAMS)]
    for thread in threads:
        thread.start()
    is_running.wait()
    begin_s = time.monotonic()
    running.podman("kill", "--signal", "TERM", running.id)
    status = running.wait(pod["terminationGracePeriodSeconds"])
    assert time.monotonic() - begin_s < pod["terminationGracePeriodSeconds"]
    for thread in threads:
        thread.join(10)
    assert ends == ["[DONE]"] * NUM_STREAMS
    assert status == 0


def test_sigterm_ends_a_server_that_still_loads(
    environ: Mapping[str, str], objects: Objects, pod: Object, tmp_path: Path
) -> None:
    """As process 1, to which a signal without a handler does nothing."""
    with started(environ, server_flags(objects, pod, tmp_path, free_ports(1)[0]), FULL, ["serve"]) as running:
        end_s = time.monotonic() + 30
        while "SigCgt" in running.status_fields() and not _catches_term(running) and time.monotonic() < end_s:
            time.sleep(0.02)
        running.podman("kill", "--signal", "TERM", running.id)
        assert running.wait(20) in (0, 143)


def _catches_term(running: Running) -> bool:
    return bool(int(running.status_fields()["SigCgt"], 16) >> 14 & 1)


def test_helm_test_gets_an_answer(served: tuple[Running, str], environ: Mapping[str, str], objects: Objects) -> None:
    (test,) = [one for one in objects if one["kind"] == "Pod"]
    _, url = served
    (container,) = test["spec"]["containers"]
    arguments = [url if str(part).startswith("http://") else str(part) for part in container["args"]]
    with started(environ, restrictions(test["spec"], container), FULL, arguments) as running:
        assert running.wait(60) == 0, running.log()
        assert "tokens/s" in running.log()


def run_in(environ: Mapping[str, str], image: str, command: str) -> tuple[int, str]:
    with started(environ, ["--entrypoint", "sh"], image, ["-c", command]) as running:
        return running.wait(60), running.log()


def test_images_have_no_compiler(environ: Mapping[str, str]) -> None:
    for image in (SLIM, FULL):
        status, said = run_in(environ, image, "for x in cc gcc clang ld; do command -v $x; done")
        assert (status, said) == (127, "") or said == "", (status, said)


def test_slim_has_no_model_and_says_what_it_is_made_of(environ: Mapping[str, str]) -> None:
    _, said = run_in(environ, SLIM, "ls /var/cache/fenhe; cat /opt/fenhe/sbom.cdx.json")
    parts: Any = json.loads(said)
    assert {"onnxruntime", "fenhe", "numpy"} <= {part["name"] for part in parts["components"]}
    size = size_bytes(environ, SLIM)
    print(f"slim {size / 1e6:.0f} MB, full {size_bytes(environ, FULL) / 1e6:.0f} MB")
    assert size < 600_000_000


def test_variant_with_vllm_builds_as_far_as_its_base_allows(environ: Mapping[str, str]) -> None:
    """On the stand-in, which has no vLLM: what is ours is installed and starts. Nothing more is shown."""
    tag_standin(environ, VLLM_BASE)
    build(environ, "vllm")
    with started(environ, [], "localhost/fenhe:0.1.0-vllm", ["--version"]) as running:
        assert running.wait(60) == 0, running.log()
        assert "0.1.0" in running.log()
