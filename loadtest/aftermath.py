"""What a server must look like once its last request is over: idle, with nothing held."""

import time
from typing import Any

import httpx

from loadtest.served import ADMIN_KEY

SETTLE_S = 30.0
_ADMISSION = ("num_running", "running_tokens", "queued_tokens")


def aftermath(url: str) -> list[str]:
    """What is still held, or inconsistent. Waits up to `SETTLE_S` seconds for requests that are being aborted."""
    end_s = time.monotonic() + SETTLE_S
    with httpx.Client(base_url=url, timeout=30.0) as client:
        problems = _held(client)
        while problems and time.monotonic() < end_s:
            time.sleep(0.5)
            problems = _held(client)
        return problems + _ready(client)


def _ready(client: httpx.Client) -> list[str]:
    reply = client.get("/readyz")
    return [] if reply.status_code == 200 else [f"not ready: {reply.text[:300]}"]


def _held(client: httpx.Client) -> list[str]:
    found = series(client.get("/metrics").text)
    problems = [
        f"{name} is {found[name]:g} with nothing to do"
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        if found[name] != 0
    ]
    accepted, ended = found["fenhe_sequences_accepted_total"], found["vllm:request_success_total"]
    if accepted != ended:
        problems.append(f"{accepted:g} sequences were accepted and {ended:g} ended")
    if found["fenhe_failed_steps_total"]:
        problems.append(f"{found['fenhe_failed_steps_total']:g} engine steps failed")
    return problems + _inside(client)


def _inside(client: httpx.Client) -> list[str]:
    reply = client.get("/debug/state", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    if reply.status_code != 200:
        return [f"/debug/state answered {reply.status_code}: {reply.text[:200]}"]
    state: dict[str, Any] = reply.json()
    problems = [f"{student['name']}: {problem}" for student in state["students"] for problem in student["integrity"]]
    held = {"open_requests": state["open_requests"], "cache.num_generations": state["cache"]["num_generations"]}
    for student in state["students"]:
        held |= {f"{student['name']}.{name}": student[name] for name in ("running", "waiting")}
        held |= {f"{student['name']}.door.{name}": student["door"][name] for name in _ADMISSION}
    return problems + [f"{name} is {value} with nothing to do" for name, value in held.items() if value]


def series(text: str) -> dict[str, float]:
    """Each metric's sum over its labels."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            key = name.partition("{")[0]
            sums[key] = sums.get(key, 0.0) + float(value)
    return sums
