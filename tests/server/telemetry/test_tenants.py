"""Tenants' requests and tokens, and the process itself, in /metrics."""

import hashlib
import os
import re
from pathlib import Path

from server.settings.config import KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server, until

KEY = "fk-acme"


def series(served: Served, name: str) -> dict[str, float]:
    text = served.http.get("/metrics").text
    return {labels: float(value) for labels, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)}


def test_tenants_requests_and_tokens_are_counted(student: TinyStudent, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file.write_text(f'[[key]]\nname = "web"\ntenant = "acme"\nsha256 = "{digest}"\n')
    config = ServerConfig(keys=KeysConfig(file=file))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        served.http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer wrong"})
        answer = served.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
        usage = answer.json()["usage"]
        expected = {
            '{kind="prompt",tenant="acme"}': usage["prompt_tokens"],
            '{kind="completion",tenant="acme"}': usage["completion_tokens"],
        }
        assert until(lambda: series(served, "fenhe_tenant_tokens_total") == expected)
        assert series(served, "fenhe_tenant_requests_total") == {'{status="200",tenant="acme"}': 1}


def test_servers_without_keys_have_no_tenants(served: Served) -> None:
    served.chat("hello")
    assert series(served, "fenhe_tenant_requests_total") == {}


def test_process_says_when_it_started_and_what_it_holds(served: Served) -> None:
    (start,) = series(served, "process_start_time_seconds").values()
    (resident,) = series(served, "process_resident_memory_bytes").values()
    assert abs(start - os.stat("/proc/self").st_ctime) < 3600
    assert resident > 10_000_000
