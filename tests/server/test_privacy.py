"""What must never be in a log above DEBUG: prompts and answers. Nor keys, at any level: see test_keys.py."""

import contextlib
import logging

import httpx
import pytest

from engines.config import EngineConfig
from engines.scripted import Line
from models.errors import QueueFull, StepFailed
from server.settings.config import Limits
from tests.server.conftest import Start

SECRET = "Xyzzy"
OURS = ("server", "router", "engines", "models", "uvicorn", "asyncio")
SCRIPT = {
    "broken": Line(pieces=(SECRET,), error=StepFailed("the forward pass failed")),
    "refused": Line(refusal=QueueFull("too many")),
    "says": Line(pieces=(SECRET, SECRET)),
    "hold": Line(pieces=(SECRET,) * 300, delay_s=0.02),
}


def test_log_shows_no_prompt_and_no_answer(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    served = start(
        SCRIPT, limits=Limits(max_prompts=2, max_body_bytes=20_000), engine_config=EngineConfig(max_running=2)
    )
    with caplog.at_level(logging.INFO):
        for prompt in ("says", "broken", "refused", "kaboom", "says math"):
            for is_stream in (False, True):
                served.chat(f"{prompt} {SECRET}", stream=is_stream)
        served.chat(f"hold {SECRET}", headers={"x-fenhe-deadline-ms": "50"})
        served.chat(SECRET * 400)  # longer than the context
        served.chat(SECRET, stop=[""], temperature=9)
        served.chat(SECRET, model=SECRET)
        served.chat(SECRET, **{SECRET: 1})  # type: ignore[arg-type]
        served.post("/v1/completions", {"model": "auto", "prompt": [SECRET] * 3})
        served.post("/tokenize", {"prompt": SECRET, "messages": SECRET})
        served.route(SECRET, fenhe={"task": SECRET})
        for body in (f'{{"{SECRET}', f'["{SECRET}"]', f'"{SECRET}' * 9000):
            served.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        served.http.post("/v1/chat/completions", content=SECRET, headers={"content-type": SECRET})
        with contextlib.suppress(httpx.ReadTimeout):
            served.http.post("/v1/completions", json={"model": "auto", "prompt": f"hold {SECRET}"}, timeout=0.2)
        assert served.chat("hello").status_code == 200
    ours = [record for record in caplog.records if record.name.split(".")[0] in OURS]
    assert len(ours) > 20
    formatter = logging.Formatter()
    assert not [record for record in ours if SECRET in formatter.format(record)]
