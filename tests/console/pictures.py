"""`python -m tests.console.pictures`: takes the pictures of docs/console.md of the real default student.

On a quiet machine: the speeds that they show are those of the moment. What it asks has limits, so that it ends.
"""

import json
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from loadtest.served import ServedProcess
from tests.console.conftest import STUDENT, ask

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
PATHS = ("narrow", "medium", "wide", "full")
NUM_STREAMS = 8
QUESTION = "What makes a contract binding?"
COMPARED = "What is a lighthouse for?"
COMPARED_TOKENS = "60"
SEED = "5"
MOST_TOKENS = "120"
"""This student seldom ends an answer by itself."""
COLOURS = 96
WAIT_S = 600.0
"""For anything: a busy machine takes its time."""

SCORING = {
    "FENHE_ONLINE_QUALITY__SHARE": "1",
    "FENHE_ONLINE_QUALITY__ENGINE_SHARE": "1",
    "FENHE_ONLINE_QUALITY__MAX_QUEUED": "1000",
}
"""Every answer is scored, so that there are figures within minutes."""
SCORED = {
    "legal": (QUESTION, "What is a verbal contract worth?", "Can I be dismissed while I am ill?"),
    "creative": ("Begin a story about a lighthouse that dreams.", "Write a poem about rain.", "Invent a festival."),
}
NUM_SCORED = {"narrow": 36, "medium": 40, "wide": 48, "full": 20}
"""Answers of each path on each of these tasks. More than `min_samples` count for a figure: older ones weigh less."""
SCORED_TOKENS = 40
NUM_CLIENTS = 4


def main() -> None:
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = ServedProcess(SCORING, Path(folder) / "log")
        try:
            url = server.wait_for_url(900).removesuffix("/v1")
            with sync_playwright() as driver:
                take_all(driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]), url)
        finally:
            server.stop()


def take_all(browser: Any, url: str) -> None:
    page = open_view(browser, url, "chat", "dark")
    set_limit(page)
    ask(page, QUESTION)
    page.wait_for_selector(".answer:not(.running) .actions")
    take(page, "chat")
    page = open_view(browser, url, "route", "light")
    page.fill("textarea", QUESTION)
    page.wait_for_selector(".grid td.now svg.strip")
    take(page, "route")
    page = open_view(browser, url, "compare", "light")
    page.fill("textarea", COMPARED)
    page.get_by_label("Most tokens").fill(COMPARED_TOKENS)
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".summary >> text=/Both gave|then they part/")
    page.get_by_label("token by token").check()
    take(page, "compare")
    page = open_view(browser, url, "students", "light")
    page.wait_for_selector(".pareto .point")
    take(page, "students")
    page = open_view(browser, url, "live", "light", height=2000)
    have_answers_scored(url)
    page.wait_for_selector(".online svg.quality .point")
    take(page, "quality", ".online")
    for number in range(NUM_STREAMS):
        threading.Thread(target=keep_busy, args=(url, number), daemon=True).start()
    page = open_view(browser, url, "live", "dark")
    page.locator(".step text.path").nth(NUM_STREAMS - 1).wait_for()
    page.wait_for_timeout(30_000)
    page.locator(".step text.path").nth(NUM_STREAMS - 1).wait_for()
    take(page, "live")


def open_view(browser: Any, url: str, view: str, scheme: str, height: int = 760) -> Any:
    page = browser.new_page(viewport={"width": 1200, "height": height}, locale="en-US", color_scheme=scheme)
    page.set_default_timeout(WAIT_S * 1000)
    page.goto(f"{url}/#/{view}")
    page.wait_for_selector("main h1")
    return page


def set_limit(page: Any) -> None:
    """The same short answer every time."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens").fill(MOST_TOKENS)
    page.get_by_label("Seed").fill(SEED)
    page.get_by_role("button", name="Close").click()


def take(page: Any, name: str, part: str = "") -> None:
    """A picture of the whole window, or of a part of the page."""
    file = FOLDER / f"console-{name}.png"
    page.wait_for_timeout(500)
    shown = page.locator(part) if part else page
    shown.screenshot(path=str(file), caret="initial")
    shrink(file)


def shrink(file: Path) -> None:
    Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


def keep_busy(url: str, number: int) -> None:
    """Answers on one path, one after another, until the server goes."""
    body: dict[str, Any] = {"model": f"{STUDENT}:{PATHS[number % len(PATHS)]}", "max_tokens": 160 + 20 * number}
    body |= {
        "ignore_eos": True,
        "temperature": 1,
        "messages": [{"role": "user", "content": f"A story, number {number}."}],
    }
    while True:
        try:
            send(url, body)
        except (OSError, urllib.error.URLError):
            return


def have_answers_scored(url: str) -> None:
    """Answers on every path, and their scores."""
    bodies = [
        {
            "model": f"{STUDENT}:{path}",
            "max_tokens": SCORED_TOKENS,
            "temperature": 0.7,
            "fenhe": {"task": task, "cache": False},
            "messages": [{"role": "user", "content": prompts[number % len(prompts)]}],
        }
        for task, prompts in SCORED.items()
        for path, count in NUM_SCORED.items()
        for number in range(count)
    ]
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(lambda body: send(url, body), bodies))
    until_s = time.monotonic() + WAIT_S
    while waiting_for_scores(url) and time.monotonic() < until_s:
        time.sleep(1)


def waiting_for_scores(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/console/state", timeout=WAIT_S) as reply:
        quality = json.load(reply)["online_quality"]
    return bool(quality["is_scoring"] or quality["num_waiting"])


def send(url: str, body: dict[str, Any]) -> None:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    urllib.request.urlopen(request, timeout=WAIT_S).read()


if __name__ == "__main__":
    main()
