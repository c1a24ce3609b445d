"""A browser on a real server: Debian's chromium, driven by Playwright, on the scripted engine.

Whatever a page does against its policy, writes as an error or throws fails its test.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.contract import EngineStatus
from engines.scripted import Line, ScriptedEngine
from models.student.manifest import CheapHead, Exit, Manifest, Measured, Module, StudentPath, Variant, Width
from server.settings.config import AdminConfig, ServerConfig
from server.students.open_student import Opened
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_manifest, make_tokenizer, run_server

ROOT = Path(__file__).parents[2]
AXE = ROOT / "server" / "console" / "node_modules" / "axe-core" / "axe.min.js"
STUDENT = "smollm2-135m"
VARIANT = "w8a8-native"
ADMIN = "open sesame"
ADMINISTERED = ServerConfig(admin=AdminConfig(key_sha256=hashlib.sha256(ADMIN.encode()).hexdigest()))
LAYERS = 30
WHOLE = 1536
WAIT_MS = 60_000
"""These tests run beside others: nothing is said of speed."""

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""

ANSWER = """Three spiders have **24 legs**: each has 8, and

$$3 \\times 8 = 24$$

| animal | legs |
|---|---|
| spider | 8 |
| ant | 6 |

```python
print(3 * 8)
```

So $n = 24$."""
LINES = {
    "spider": Line(pieces=tuple(f"{word} " for word in ANSWER.split(" ")), delay_s=0.004),
    "quick": Line(pieces=("Yes", ", ", "it", " is", "."), delay_s=0.002),
    "endless": Line(pieces=tuple(f"word{number} " for number in range(4000)), delay_s=0.02),
    **SCRIPT,
}


def lens(least: float) -> tuple[int, ...]:
    """How many neurons each layer keeps: all at both ends, the least in the middle, in whole blocks."""
    return tuple(
        64 * round(WHOLE / 64 * (least + (1 - least) * (abs(2 * at - 29) / 29) ** 1.6)) for at in range(LAYERS)
    )


def wide_manifest() -> Manifest:
    """Like the default student's: three modules, four widths, a cheap head, and what was measured of it."""
    measured = msgspec.json.decode((ROOT / "models" / "data" / f"{STUDENT}.quality.json").read_bytes(), type=Measured)
    tiny = make_manifest(STUDENT)
    names = ("wide", "medium", "narrow")
    modules = (("knowledge", 0, 9), ("reasoning", 9, 15), ("adapter", 24, 6))
    architecture = msgspec.structs.replace(
        tiny.architecture,
        num_layers=LAYERS,
        intermediate_size=WHOLE,
        hidden_size=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        max_context_tokens=8192,
    )
    paths = [
        StudentPath(name=name, modules=tuple(one[0] for one in modules), exit="adapter_exit", width=width)
        for name, width in (*((name, name) for name in names), ("full", ""))
    ]
    return msgspec.structs.replace(
        tiny,
        architecture=architecture,
        modules=tuple(Module(name=name, first_layer=first, num_layers=num) for name, first, num in modules),
        exits=(Exit(name="adapter_exit", after="adapter"),),
        paths=tuple(paths),
        widths=tuple(Width(name=name, neurons=lens(least)) for name, least in zip(names, (0.6, 0.5, 0.4), strict=True)),
        tasks=dict.fromkeys(("math", "legal", "fact", "creative", "general"), "narrow"),
        depth_rules=(),
        retention=(),
        figures=tuple(one for one in measured.figures if one.variant == VARIANT),
        cheap_head=CheapHead(rank=96, num_frequent=2048, num_candidates=1536, sha256="0" * 64),
        variants=tuple(
            Variant(name=name, stages={}, head="head", embedding="embedding", weight_bytes=size, cheap_head="cheap")
            for name, size in ((VARIANT, 259_460_864), ("w8a8", 157_392_000))
        ),
    )


class WideEngine(ScriptedEngine):
    """Scripted, at a precision that was measured, with some KV in use."""

    def status(self) -> EngineStatus:
        now = super().status()
        rows = {name: sum(now.stage_rows.values()) for name in ("knowledge", "reasoning", "adapter")}
        return replace(
            now, variant=VARIANT, kv_capacity_bytes=1 << 30, kv_used_bytes=now.num_running << 24, stage_rows=rows
        )


def open_wide(folder: Path, lines: Mapping[str, Line] = LINES, **options: Any) -> Opened:
    student = TinyStudent(folder=folder, manifest=wide_manifest(), tokenizer=make_tokenizer())
    engine = WideEngine(
        student=STUDENT,
        paths={"narrow": 4, "medium": 4, "wide": 4, "full": 4},
        default_path="full",
        decode=lambda ids: make_tokenizer().decode(list(ids), skip_special=False),
        script=lines,
        head="cheap",
        **options,
    )
    return Opened(name=STUDENT, student=student, engine=engine, tasks=frozenset())


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(config, lines, **engine_options)`: a server of the test's own, until the test ends."""
    with contextlib.ExitStack() as stack:

        def begin(config: ServerConfig | None = None, lines: Mapping[str, Line] = LINES, **options: Any) -> Served:
            student = open_wide(tmp_path, lines, **options)
            return stack.enter_context(run_server([student], config or ServerConfig()))

        yield begin


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = os.environ.get("FENHE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # As root, as in most containers, chromium has no sandbox; it opens nothing but our own pages.
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"], timeout=WAIT_MS)
        yield found
        found.close()


@dataclass(slots=True, kw_only=True)
class Watched:
    """Pages, and what went wrong in them. `expected` are parts of messages that a test provokes on purpose."""

    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)


Open = Callable[..., Any]


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def open_page(browser: Any, watched: Watched) -> Iterator[Open]:
    """`open_page(url, view="chat", **context)`: a page of a fresh browser context, opened and ready."""
    contexts: list[Any] = []

    def begin(url: str, view: str = "chat", **options: Any) -> Any:
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda said: watched.problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: watched.problems.append(str(error)))
        page.goto(f"{url}/#/{view}")
        page.wait_for_selector("main h1")
        return page

    yield begin
    violations = [one for context in contexts for page in context.pages for one in page.evaluate("window.violations")]
    for context in contexts:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")
        context.close()
    unexpected = [one for one in watched.problems if not any(part in one for part in watched.expected)]
    assert violations == []
    assert unexpected == []


def wait_until(page: Any, holds: str, given: Any = None) -> None:
    """Until an expression holds in the page. It is asked from here, again and again: the page itself may not evaluate
    any text, by its policy."""
    end_s = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(holds, given):
        assert time.monotonic() < end_s, f"it never came: {holds}"
        page.wait_for_timeout(50)


def ask(page: Any, text: str) -> None:
    page.fill(".composer textarea", text)
    page.press(".composer textarea", "Enter")


def wait_for_answer(page: Any, number: int = 1) -> Any:
    """The `number`th answer, once it is complete."""
    wait_until(
        page,
        "number => document.querySelectorAll('.answer').length === number && !document.querySelector('.answer.running')"
        " && document.querySelector('.composer [type=submit]') !== null",
        number,
    )
    return page.locator(".answer").last


def part_ways(page: Any) -> None:
    """From now on the full path answers as if it had been asked something else."""

    def ask_otherwise(route: Any) -> None:
        body = route.request.post_data_json
        if body["model"].endswith(":full"):
            body["messages"][0]["content"] = "stop here"
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", ask_otherwise)


def give_admin_key(page: Any, key: str = ADMIN) -> None:
    page.get_by_role("button", name="Give the admin key").click()
    page.fill("input[name=admin]", key)
    page.get_by_role("button", name="Use", exact=True).click()


def online_quality(*tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """As `/console/state` has it; of each path, what is not as with one that is well."""
    usual: dict[str, Any] = {"student": STUDENT, "task": "math", "path": "narrow", "head": "cheap"}
    usual |= {"kept": 0.8, "low": 0.75, "high": 0.85, "agreement": 0.9, "num_samples": 120.0, "floor": 0.7}
    usual |= {"is_open": True, "decided_by": None, "reason": ""}
    known: dict[str, Any] = {
        "mode": "act",
        "held": None,
        "num_scored": 120,
        "min_samples": 30,
        "pins": [],
        "changes": [],
    }
    return {**known, "tasks": [{**usual, **task} for task in tasks], **fields}


def show_quality(page: Any, online: dict[str, Any]) -> None:
    """From now on the page is told this online quality."""

    def tell(route: Any) -> None:
        route.fulfill(json={**route.fetch().json(), "online_quality": online})

    page.route("**/console/state", tell)
