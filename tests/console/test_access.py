"""For everybody: no serious finding of axe-core in any view, in light, dark and on phones; keyboard; both languages."""

from typing import Any

import pytest

from tests.console.conftest import (
    ADMINISTERED,
    AXE,
    Open,
    Serve,
    ask,
    give_admin_key,
    part_ways,
    wait_for_answer,
    wait_until,
)
from tests.server.conftest import Served

pytestmark = pytest.mark.browser

VIEWS = ("chat", "route", "compare", "live", "students")
PHONE = {"width": 390, "height": 780}


def findings(page: Any) -> list[str]:
    """Serious and critical findings, and where they are."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {node['target']}: {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: `make test-console` installs it with npm")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_no_serious_finding(served: Served, open_page: Open, view: str, scheme: str) -> None:
    page = open_page(served.url, view, color_scheme=scheme)
    fill(page, view)
    assert findings(page) == []
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(200)
    assert findings(page) == []


def fill(page: Any, view: str) -> None:
    """Something to look at in every view."""
    if view == "chat":
        ask(page, "spider math")
        wait_for_answer(page)
        page.get_by_role("button", name="Settings").click()
    elif view == "route":
        page.fill("textarea", "some math now")
        page.wait_for_selector(".grid td.now svg.strip")
    elif view == "compare":
        page.fill("textarea", "quick")
        page.get_by_role("button", name="Compare").click()
        page.wait_for_selector(".summary >> text=Both gave")
    elif view == "live":
        page.wait_for_selector(".step")
    else:
        page.wait_for_selector(".pareto .point")


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: `make test-console` installs it with npm")
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_no_serious_finding_where_tokens_are_compared(served: Served, open_page: Open, language: str) -> None:
    page = open_page(served.url, "compare", locale=language)
    part_ways(page)
    page.fill("textarea", "quick")
    page.press("textarea", "Enter")
    page.wait_for_selector(".compare .summary:has-text('0 %'), .compare .summary:has-text('0%')")
    page.locator(".compare .choice input").last.check()
    page.wait_for_selector("mark.differs")
    assert findings(page) == []


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: `make test-console` installs it with npm")
def test_no_serious_finding_where_paths_are_pinned(serve: Serve, open_page: Open) -> None:
    page = open_page(serve(ADMINISTERED).url, "students")
    give_admin_key(page)
    page.get_by_role("button", name="Keep out: narrow, mathematics").click()
    page.wait_for_selector(".routing >> text=kept out by an operator")
    assert findings(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(served: Served, open_page: Open, view: str) -> None:
    page = open_page(served.url, view, viewport=PHONE)
    fill(page, view)
    width = page.evaluate("Math.max(document.documentElement.scrollWidth, document.querySelector('main').scrollWidth)")
    assert width <= PHONE["width"]


def test_views_open_from_the_keyboard(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    for number, view in enumerate(VIEWS, 1):
        page.keyboard.press(f"Alt+Digit{number}")
        wait_until(page, "view => location.hash === `#/${view}`", view)
        page.wait_for_selector(f".rail a[aria-current=page][href='#/{view}']")
    page.keyboard.press("Alt+Digit1")
    page.wait_for_selector(".composer")
    page.keyboard.press("/")
    wait_until(page, "document.activeElement.matches('.composer textarea')")
    page.keyboard.type("quick")
    page.keyboard.press("Enter")
    wait_for_answer(page)


def test_everything_can_be_reached_with_the_tab_key(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''"))
    assert {"Skip to the content", "Route", "Students", "Key", "New conversation", "Settings"} <= reached
    assert "Message" in reached


def test_screen_readers_hear_of_answers(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    ask(page, "quick")
    wait_for_answer(page)
    page.wait_for_selector("[role=status] >> text=The answer is complete", state="attached")


def test_chinese_is_chosen_and_kept(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="中文").click()
    page.wait_for_selector("text=只用需要的那一部分")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.reload()
    page.wait_for_selector("text=只用需要的那一部分")


def test_browser_in_chinese_gets_chinese(served: Served, open_page: Open) -> None:
    page = open_page(served.url, locale="zh-CN")
    page.wait_for_selector("text=只用需要的那一部分")


def test_light_and_dark_are_chosen(served: Served, open_page: Open) -> None:
    page = open_page(served.url, color_scheme="light")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="As the system").click()
    page.get_by_role("button", name="Light", exact=True).click()
    page.get_by_role("button", name="Dark", exact=True).wait_for()
    assert page.evaluate(ground) != light
