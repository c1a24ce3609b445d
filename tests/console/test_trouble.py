"""What a page says when things go wrong: the server is gone, busy, or does not know the key."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.scripted import Line
from loadtest.served import installed_command
from models.errors import QueueFull, StepFailed
from server.settings.config import KeysConfig, ServerConfig
from tests.console.conftest import LINES, Open, Serve, Watched, ask, wait_for_answer, wait_until

pytestmark = pytest.mark.browser

KEY = "fk-the-right-one"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`fenhe simulate` and its address."""
    command = [installed_command(), "simulate", "--port", "0", "--first-token-ms", "20", "--inter-token-ms", "20"]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        with started:
            assert started.stdout is not None
            yield started.stdout.readline().split()[-1].removesuffix("/v1"), started
            started.kill()


def test_server_that_is_gone_is_told_and_tried_again(
    process: tuple[str, subprocess.Popen[str]], open_page: Open, watched: Watched
) -> None:
    watched.expected += ["Failed to load resource", "ERR_"]
    url, server = process
    page = open_page(url)
    ask(page, "tell me")
    wait_until(page, "document.querySelector('.answer.running')?.innerText.includes('word3')")
    server.kill()
    page.wait_for_selector("[data-trouble=gone]")
    assert "word3" in page.locator(".answer").inner_text()
    assert "Broken off" in page.locator(".answer .facts").inner_text()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("[data-trouble=gone] >> text=does not answer")
    page.goto(f"{url}/#/live")
    page.wait_for_selector(".live [data-trouble=gone]")


def test_busy_server_is_told_with_the_wait(serve: Serve, open_page: Open, watched: Watched) -> None:
    watched.expected += ["429"]
    full = Line(refusal=QueueFull("the queue is full; try again later", retry_after_s=2.0))
    served = serve(lines={"busy": full, **LINES})
    page = open_page(served.url)
    ask(page, "busy")
    page.wait_for_selector("[data-trouble=busy]")
    again = page.get_by_role("button", name="Try again")
    assert "Try again in" in again.inner_text()
    page.wait_for_selector("button:has-text('Try again'):not([disabled])")


def test_answer_that_breaks_keeps_what_came(serve: Serve, open_page: Open) -> None:
    broken = Line(pieces=("one ", "two "), delay_s=0.02, error=StepFailed("the step failed"))
    served = serve(lines={"broken": broken, **LINES})
    page = open_page(served.url)
    ask(page, "broken")
    page.wait_for_selector("[data-trouble=failed]")
    assert "one two" in page.locator(".answer").inner_text()
    assert "Broken off" in page.locator(".answer .facts").inner_text()


def test_wrong_key_is_told_and_the_right_one_is_never_kept(serve: Serve, open_page: Open, watched: Watched) -> None:
    watched.expected += ["401"]
    served = serve(ServerConfig(keys=KeysConfig(sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))))
    page = open_page(served.url)
    page.wait_for_selector("dialog[open]")
    page.fill("input[name=api]", "fk-wrong")
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector(".notice >> text=does not know this key")
    page.wait_for_selector("dialog[open]")
    page.fill("input[name=api]", KEY)
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector(".welcome >> text=there are 4 paths")
    ask(page, "quick")
    wait_for_answer(page)
    page.wait_for_timeout(600)
    kept = page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + location.href")
    assert KEY not in kept
    assert "fk-" not in kept
    page.reload()
    page.wait_for_selector("dialog[open]")


def test_refused_request_is_told_in_the_servers_words(serve: Serve, open_page: Open, watched: Watched) -> None:
    watched.expected += ["400"]
    page = open_page(serve().url)
    page.get_by_role("button", name="Settings").click()
    page.fill(".settings input[type=number] >> nth=0", "9")
    ask(page, "quick")
    page.wait_for_selector("[data-trouble=refused]")
    assert "temperature" in page.locator("[data-trouble=refused]").inner_text()
