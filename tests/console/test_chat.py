"""The chat in a real browser: streaming, stopping, editing, settings, history, what is told of an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import Open, Serve, ask, wait_for_answer, wait_until
from tests.server.conftest import Served, until

pytestmark = pytest.mark.browser


def test_answer_streams_as_markdown_and_says_what_ran(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    ask(page, "How many legs do three spiders have? math")
    answer = wait_for_answer(page)
    assert answer.locator("strong", has_text="24 legs").count() == 1
    assert answer.locator("table td", has_text="ant").count() == 1
    assert answer.locator("pre code").inner_text() == "print(3 * 8)"
    page.wait_for_selector(".answer math")
    assert page.locator(".answer math").count() == 2
    facts = answer.locator(".facts").inner_text()
    for part in ("mathematics 90 %", "Compute", "tokens/s", "First token", "Cache"):
        assert part in facts
    path = answer.locator(".facts .path strong").inner_text()
    assert answer.locator(f"svg.strip[data-path={path}]").count() == 1
    assert answer.locator("svg.strip .lit").count() == 30


LATE_EFFECTS = """() => {
  const soon = setTimeout;
  window.requestAnimationFrame = () => 0;
  window.setTimeout = (then, ms, ...given) => soon(then, Math.max(ms ?? 0, 1500), ...given);
}"""
"""A page whose effects run long after it was drawn, as on a busy machine."""


def test_formulas_are_drawn_when_the_answer_is_mounted_while_they_load(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    page.evaluate(LATE_EFFECTS)
    ask(page, "How many legs do three spiders have? math")
    wait_for_answer(page)
    page.wait_for_selector(".answer math")
    assert page.locator(".answer math").count() == 2


def test_text_grows_while_it_streams(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    ask(page, "endless")
    wait_until(page, "document.querySelector('.answer.running')?.innerText.includes('word3')")
    wait_until(page, "document.querySelector('.answer.running')?.innerText.includes('word30 ')")
    page.click(".stop")
    wait_for_answer(page)


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_keeps_what_was_said_and_frees_the_engine(served: Served, open_page: Open, way: str) -> None:
    page = open_page(served.url)
    ask(page, "endless")
    wait_until(page, "document.querySelector('.answer.running')?.innerText.includes('word2')")
    if way == "button":
        page.click(".stop")
    else:
        page.keyboard.press("Escape")
    answer = wait_for_answer(page)
    assert "word2" in answer.inner_text()
    assert "Stopped" in answer.locator(".facts").inner_text()
    assert until(lambda: served.engine.status().num_running == 0)


def test_answer_can_be_had_again_and_turns_edited(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    ask(page, "quick question")
    wait_for_answer(page)
    page.get_by_role("button", name="Answer again").click()
    wait_for_answer(page)
    assert until(lambda: served.engine.status().num_accepted == 2)
    page.hover(".turn.user")
    page.get_by_role("button", name="Edit").click()
    page.fill(".editing textarea", "quick and edited")
    page.press(".editing textarea", "Enter")
    wait_for_answer(page)
    assert page.locator(".turn.user .said").all_inner_texts() == ["quick and edited"]


def test_settings_are_sent(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="Settings").click()
    page.fill(".settings textarea", "Be brief.")
    page.select_option(".settings select >> nth=0", "smollm2-135m:medium")
    page.fill(".settings input[type=number] >> nth=0", "0.3")
    page.fill(".settings input[type=number] >> nth=2", "2")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "quick")
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("smollm2-135m:medium", 0.3, 2)
    answer = wait_for_answer(page)
    assert answer.locator(".facts .path strong").inner_text() == "medium"
    assert "Cut off" in answer.locator(".facts").inner_text()


def test_probabilities_colour_the_tokens(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Ask for probabilities").check()
    ask(page, "quick")
    wait_for_answer(page)
    page.get_by_role("button", name="Probabilities").click()
    assert page.locator(".token").all_inner_texts()[0].strip() == "Yes"
    assert page.locator(".token").first.get_attribute("data-doubt") == "1"
    page.focus(".tokens .flow")
    page.keyboard.press("ArrowRight")
    assert "61 %" in page.locator(".others").inner_text()


def test_history_is_kept_exported_and_imported(served: Served, open_page: Open, tmp_path: Path) -> None:
    page = open_page(served.url)
    ask(page, "quick one")
    wait_for_answer(page)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "quick two")
    wait_for_answer(page)
    page.reload()
    page.wait_for_selector(".list li")
    assert [one.strip() for one in page.locator(".list li button:first-child").all_inner_texts()] == [
        "quick two",
        "quick one",
    ]
    with page.expect_download() as got:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "conversations.json"
    got.value.save_as(file)
    assert len(json.loads(file.read_text())["conversations"]) == 2
    other = open_page(served.url)
    other.set_input_files("input[type=file] >> nth=0", file)
    other.wait_for_selector(".list li >> nth=1")
    other.set_input_files("input[type=file] >> nth=0", {"name": "no.json", "mimeType": "text/plain", "buffer": b"{"})
    other.wait_for_selector("text=no.json has no conversations")


def test_nothing_is_kept_when_that_is_not_wanted(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    page.get_by_label("Keep in this browser").uncheck()
    ask(page, "quick one")
    wait_for_answer(page)
    page.wait_for_timeout(600)
    assert page.evaluate("localStorage.getItem('fenhe.conversations')") is None


def test_text_files_are_attached_and_others_refused(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    files: list[Any] = [
        {"name": "notes.md", "mimeType": "text/plain", "buffer": "quick ```notes``` é".encode()},
        {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n\x00\xff"},
    ]
    page.set_input_files(".composer input[type=file]", files)
    page.wait_for_selector("text=picture.png is no text")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Sum up.")
    assert sent.value.post_data_json["messages"][0]["content"] == (
        "Sum up.\n\nnotes.md:\n````\nquick ```notes``` é\n````"
    )
    wait_for_answer(page)


def test_request_is_copied_as_curl_and_python_without_a_key(served: Served, open_page: Open) -> None:
    page = open_page(served.url, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "quick 'quoted'")
    wait_for_answer(page)
    page.get_by_role("button", name="Copy as curl").click()
    wait_until(page, "navigator.clipboard.readText().then(text => text.startsWith('curl '))")
    curl = page.evaluate("navigator.clipboard.readText()")
    assert "$FENHE_KEY" in curl
    assert f"{served.url}/v1/chat/completions" in curl
    page.get_by_role("button", name="Copy as Python").click()
    wait_until(page, "navigator.clipboard.readText().then(text => text.includes('OpenAI'))")
    program = page.evaluate("navigator.clipboard.readText()")
    compile(program, "copied.py", "exec")
    assert f'base_url="{served.url}/v1"' in program


def test_second_turn_sends_the_first(served: Served, open_page: Open) -> None:
    page = open_page(served.url)
    ask(page, "quick one")
    wait_for_answer(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "quick two")
    roles = [one["role"] for one in sent.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]
    wait_for_answer(page, 2)


def test_model_of_a_server_of_one_slot_waits_its_turn(serve: Serve, open_page: Open) -> None:
    served = serve(max_running=1)
    one, other = open_page(served.url), open_page(served.url)
    ask(one, "endless")
    one.wait_for_selector(".answer.running .facts")
    ask(other, "quick")
    other.wait_for_selector(".answer.running")
    one.click(".stop")
    wait_for_answer(other)
