"""One pass through all views with the real default student, and how long the page takes until it can be used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.served import ServedProcess
from tests.console.conftest import Open, ask, wait_for_answer, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    # What a small model says is sometimes long: here no more is waited for than is looked at.
    server = ServedProcess({"FENHE_LIMITS__MAX_COMPLETION_TOKENS": "200"}, tmp_path / "log")
    try:
        yield server.wait_for_url(900).removesuffix("/v1")
    finally:
        server.stop()


def test_default_student_answers_in_every_view(url: str, open_page: Open, capsys: pytest.CaptureFixture[str]) -> None:
    page = open_page(url)
    page.wait_for_selector(".welcome >> text=there are 6 paths")
    wait_until(page, f"({PAINT}) !== null")
    ready_ms = page.evaluate("performance.getEntriesByType('mark').find(one => one.name === 'ready').startTime")
    with capsys.disabled():
        print(f"\nfirst paint {page.evaluate(PAINT):.0f} ms, usable {ready_ms:.0f} ms")
    ask(page, "How many legs do three spiders have?")
    answer = wait_for_answer(page)
    assert answer.locator("svg.strip .lit").count() == 30
    assert "tokens/s" in answer.locator(".facts").inner_text()

    page.goto(f"{url}/#/route")
    page.fill("textarea", "What is 12 times 7?")
    page.wait_for_selector(".scores .chosen >> text=mathematics")
    page.wait_for_selector(".words mark")
    page.wait_for_selector(".grid td.now svg.strip")

    page.goto(f"{url}/#/compare")
    page.fill("input[type=number]", "24")
    page.fill("textarea", "Why is the sky blue?")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".summary >> text=/Both gave|then they part/")

    page.goto(f"{url}/#/live")
    page.wait_for_selector(".step")
    page.goto(f"{url}/#/students")
    page.wait_for_selector(".pareto .point")
    assert page.locator("table.paths tbody tr").count() == 12
    assert "w8a8" in page.locator("main").inner_text()
