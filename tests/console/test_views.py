"""Route, Compare, Live and Students in a real browser."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import EngineUnhealthy
from models.student.manifest import write_manifest
from router.quality.config import OnlineQualityConfig
from server.settings.config import ConsoleConfig
from tests.console.conftest import (
    ADMIN,
    ADMINISTERED,
    STUDENT,
    Open,
    Serve,
    Watched,
    ask,
    give_admin_key,
    online_quality,
    part_ways,
    show_quality,
    wait_until,
)
from tests.server.conftest import Served, make_manifest, until

pytestmark = pytest.mark.browser


def test_route_changes_as_one_types(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "route")
    page.locator("textarea").press_sequentially("some math now")
    page.wait_for_selector(".scores .chosen >> text=mathematics")
    assert "90 %" in page.locator(".scores .chosen").inner_text()
    assert page.locator(".decision svg.strip .lit").count() == 30
    page.fill("textarea", "something legal")
    page.wait_for_selector(".scores .chosen >> text=law")
    page.get_by_label("full", exact=True).check()
    page.wait_for_selector(".decision >> text=The request asks for this quality.")


def test_route_shows_the_words_that_decide(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "route")
    page.fill("textarea", "some math now")
    page.wait_for_selector(".words mark.decides")
    assert page.locator(".words mark.decides").all_inner_texts() == ["math"]
    assert page.locator(".words").inner_text() == "some math now"


def test_route_shows_what_would_change_it(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "route")
    page.fill("textarea", "some math now")
    page.wait_for_selector(".grid td.now svg.strip")
    assert page.locator(".grid tbody tr").count() == 5
    assert page.locator(".grid tbody svg.strip").count() == 20
    full = page.locator(".grid tbody tr td:last-child").all_inner_texts()
    assert {one.strip() for one in full} == {"full"}


def test_compare_answers_on_two_paths_and_says_where_they_part(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "compare")
    page.fill("textarea", "quick question")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".summary >> text=Both gave the same 5 tokens.")
    heads = page.locator(".side-head h2").all_inner_texts()
    assert heads == [f"{STUDENT}:narrow", f"{STUDENT}:full"]
    shares = page.locator(".side .facts dl").all_inner_texts()
    assert all("First token" in one and "Compute" in one for one in shares)
    page.get_by_label("token by token").check()
    assert page.locator(".side .flow").all_inner_texts() == ["Yes, it is."] * 2
    assert page.locator(".side mark.differs").count() == 0


def test_compare_renders_answers_like_the_chat(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "compare")
    page.fill("textarea", "spider")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".summary >> text=Both gave")
    page.wait_for_selector(".side math")
    for side in page.locator(".side .markdown").all():
        assert side.locator("strong", has_text="24 legs").count() == 1
        assert side.locator("table td", has_text="ant").count() == 1
        assert side.locator("math").count() == 2
    page.get_by_label("as text").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".side .flow")
    assert page.locator(".side .markdown").count() == 0
    assert "**24 legs**" in page.locator(".side .flow").first.inner_text()


def test_compare_marks_tokens_that_differ(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "compare")
    part_ways(page)
    page.fill("textarea", "quick")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".summary >> text=then they part")
    assert page.locator(".side mark").count() == 0
    page.get_by_label("token by token").check()
    assert page.locator(".side mark.differs .part").count() == 9
    assert page.locator(".side mark.differs").first.text_content().startswith("5 tokens only here: ")


def test_compare_stops_both(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "compare")
    page.fill("input[type=number]", "3000")
    page.fill("textarea", "endless")
    page.get_by_role("button", name="Compare").click()
    wait_until(page, "[...document.querySelectorAll('.side .markdown')].every(one => one.innerText.includes('word3'))")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("button:has-text('Compare'):not([disabled])")
    assert until(lambda: served.engine.status().num_running == 0)


def test_live_draws_the_running_step(served: Served, open_page: Open) -> None:
    chat = open_page(served.url)
    ask(chat, "endless")
    page = open_page(served.url, "live")
    page.wait_for_selector(".step text.path")
    path = served.http.get("/console/state").json()["students"][0]["rows"][0]["path"]
    assert page.locator(".step text.path").text_content() == path
    assert page.locator(".step .lit").count() == 30
    assert "1 sequence runs" in page.locator(".card").first.inner_text()
    wait_until(page, "/[1-9]/.test(document.querySelector('.tile .value').innerText)")
    page.wait_for_selector(".step text.share >> text=100 %")
    assert page.locator(".online table tbody tr").count() == 1
    assert "fewer than 30 samples: 0" in page.locator(".online table").inner_text()
    assert page.locator(".online svg.quality").count() == 0
    assert "endless" not in page.locator("main").inner_text()
    assert "All is well" in page.locator(".alerts").inner_text()
    chat.click(".stop")


def test_live_shows_online_quality_where_it_is_measured(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "chat")
    out = {"floor": 0.9, "is_open": False, "decided_by": "controller", "reason": "below the floor of 0.9"}
    pinned = {"path": "wide", "is_open": True, "decided_by": "operator", "reason": "we like it"}
    change: dict[str, Any] = {"student": STUDENT, "task": "math", "path": "narrow", "head": "cheap"}
    change |= {"at": 1.8e9, "action": "take_out", "reason": "below 0.9"}
    few = {"path": "medium", "num_samples": 12.9}
    show_quality(page, online_quality(out, pinned, few, held="the engine is busy", changes=[change]))
    page.goto(f"{served.url}/#/live")
    page.wait_for_selector(".online table >> text=80 % (75 … 85)")
    text = page.locator("main").inner_text()
    for part in ("taken out by live quality", "below the floor of 0.9", "kept in by an operator", "we like it"):
        assert part in text
    assert "fewer than 30 samples: 12" in text
    assert "below 0.9" in text
    assert "Held: the engine is busy" in text
    assert "narrow is taken out for mathematics" in page.locator(".alerts").inner_text()


def test_live_draws_what_paths_run_against_what_they_keep(served: Served, open_page: Open) -> None:
    for _ in range(3):
        served.chat("quick math", fenhe={"path": "full", "task": "math"}, temperature=1)
    served.chat("quick math", fenhe={"path": "narrow", "task": "math"}, temperature=1)
    page = open_page(served.url, "chat")
    known = {"head": "cheap", "low": 0.78, "high": 0.88}
    tasks: list[dict[str, Any]] = [
        {**known, "path": "narrow", "kept": 0.8, "is_open": False, "decided_by": "controller", "reason": "too low"},
        {**known, "path": "full", "kept": 1.0},
        {"path": "medium", "num_samples": 4.2},
        {"path": "wide", "task": "legal", "kept": None, "num_samples": 0.0},
    ]
    show_quality(page, online_quality(*tasks))
    page.goto(f"{served.url}/#/live")
    page.wait_for_selector(".online svg.quality")
    (picture,) = page.locator(".online svg.quality").all()
    assert picture.get_attribute("aria-label").startswith("What 2 paths compute and keep on mathematics")
    titles = picture.locator(".point title").all_text_contents()
    assert [title.split(":")[0] for title in titles] == ["narrow, cheap head", "full, cheap head"]
    assert "keeps 80 % (78 … 88)" in titles[0]
    assert picture.locator(".point.out text").text_content() == "narrow ×"
    radii = [float(one.get_attribute("r")) for one in picture.locator(".point circle").all()]
    assert radii[0] < radii[1]
    middles = [float(one.get_attribute("cy")) for one in picture.locator(".point circle").all()]
    assert middles[0] > middles[1]
    told = page.locator(".online figure").all_inner_texts()
    assert "medium, cheap head: fewer than 30 samples: 4" in told[0]
    assert "wide, cheap head: fewer than 30 samples: 0" in told[1]
    table = page.locator(".online table").inner_text()
    for part in ("80 % (78 … 88)", "75 %", "25 %", "fewer than 30 samples: 4", "taken out by live quality"):
        assert part in table


def test_live_tells_of_an_engine_that_is_silent(
    served: Served, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(limit_s: float) -> None:
        raise EngineUnhealthy("it does not answer")

    monkeypatch.setattr(served.engine, "sequences", silent)
    page = open_page(served.url, "live")
    page.wait_for_selector(".alerts >> text=the engine does not answer")


def test_students_show_quality_and_cost(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "students")
    page.wait_for_selector(".pareto .point")
    assert page.locator(".pareto .point").count() == 8
    assert page.locator("table.paths tbody tr").count() == 8
    before = page.locator("table.paths").inner_text()
    page.get_by_label("law", exact=True).check()
    wait_until(page, "before => document.querySelector('table.paths').innerText !== before", before)
    assert "w8a8-native" in page.locator("main").inner_text()
    assert "no admin endpoints" in page.locator("main").inner_text()


def test_students_are_drained_and_resumed_with_the_admin_key(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    (shelf / "spare").mkdir(parents=True)
    write_manifest(shelf / "spare", make_manifest("spare"))
    served = serve(replace(ADMINISTERED, console=ConsoleConfig(folders=(shelf,))))
    page = open_page(served.url, "students")
    page.wait_for_selector("text=Without the admin key this is read-only.")
    assert page.get_by_role("button", name="Drain").count() == 0
    give_admin_key(page)
    page.get_by_role("button", name="Drain").click()
    page.get_by_role("button", name="Resume").click()
    page.wait_for_selector("button:has-text('Drain')")
    assert page.locator(".add option").all_inner_texts() == ["spare"]
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name=f"Really remove {STUDENT}?").wait_for()
    assert ADMIN not in page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie")


def pins_of(served: Served) -> Any:
    return served.http.get("/console/state").json()["online_quality"]["pins"]


def test_paths_are_pinned_and_unpinned_with_the_admin_key(serve: Serve, open_page: Open) -> None:
    served = serve(ADMINISTERED)
    page = open_page(served.url, "students")
    page.wait_for_selector(".routing >> text=With the admin key")
    assert page.locator(".routing button").count() == 0
    give_admin_key(page)
    page.get_by_label("law", exact=True).check()
    page.fill(".routing input", "wrong on leases")
    page.get_by_role("button", name="Keep out: medium, law").click()
    page.wait_for_selector(
        ".routing [role=status] >> text=medium stays out of default routing for law.", state="attached"
    )
    place = {"student": STUDENT, "task": "legal", "path": "medium"}
    assert pins_of(served) == [{**place, "is_open": False, "decided_by": "operator", "reason": "wrong on leases"}]
    row = page.locator(".routing tbody tr", has_text="medium")
    assert "kept out by an operator" in row.inner_text()
    assert "wrong on leases" in row.inner_text()
    assert page.locator(".routing input").input_value() == ""
    assert page.evaluate("document.activeElement.innerText") == "Unpin"
    page.keyboard.press("Enter")
    page.wait_for_selector(".routing [role=status] >> text=medium is unpinned for law", state="attached")
    assert pins_of(served) == []
    assert "open" in row.inner_text()
    full = page.locator(".routing tbody tr", has_text="full")
    assert full.get_by_role("button").all_inner_texts() == ["Keep in"]


def test_pins_of_the_settings_are_told_and_can_be_overruled(serve: Serve, open_page: Open) -> None:
    config = OnlineQualityConfig(pins={"math.wide": "out"})
    served = serve(replace(ADMINISTERED, online_quality=config))
    page = open_page(served.url, "students")
    row = page.locator(".routing tbody tr", has_text="wide")
    page.wait_for_selector(".routing >> text=kept out by the settings")
    give_admin_key(page)
    row.get_by_role("button", name="Keep out: wide, mathematics").wait_for()
    assert row.get_by_role("button", name="Keep out").is_disabled()
    row.get_by_role("button", name="Keep in").click()
    page.wait_for_selector(".routing >> text=kept in by an operator")
    row.get_by_role("button", name="Unpin").click()
    page.wait_for_selector(".routing >> text=kept out by the settings")


def test_pinning_that_fails_says_why(serve: Serve, open_page: Open, watched: Watched) -> None:
    watched.expected += ["400", "401"]
    served = serve(ADMINISTERED)
    page = open_page(served.url, "students")
    give_admin_key(page, "not the key")
    page.wait_for_selector("[data-trouble=key]")
    assert page.locator(".routing button").count() == 0
    page.get_by_role("button", name="Give a key").click()
    page.fill("input[name=admin]", ADMIN)
    page.get_by_role("button", name="Use", exact=True).click()
    page.get_by_role("button", name="Keep in: wide, mathematics").wait_for()
    page.route("**/admin/online-quality/pins", lambda route: route.continue_(post_data="{}"))
    page.get_by_role("button", name="Keep in: wide, mathematics").click()
    page.wait_for_selector(".routing [data-trouble=refused] >> text=task")


def test_paths_that_are_out_are_told_with_who_decided_and_why(served: Served, open_page: Open) -> None:
    page = open_page(served.url, "chat", locale="zh-CN")
    out = {"is_open": False, "decided_by": "controller", "reason": "below the floor of 0.9", "kept": None}
    show_quality(page, online_quality({**out, "num_samples": 3.0}, {**out, "head": "exact", "num_samples": 0.0}))
    page.goto(f"{served.url}/#/students")
    page.wait_for_selector(".routing .standing >> text=因实际质量移出")
    row = page.locator(".routing tbody tr", has_text="narrow")
    assert row.locator(".standing").count() == 1
    assert row.locator("[lang=en]").inner_text() == "below the floor of 0.9"
    assert "不足 30 个样本：3" in row.inner_text()
