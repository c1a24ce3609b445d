"""Nothing that a model says, and no name, runs or is fetched: a corpus of attacks, in answers, prompts and names.

Sources: OWASP's XSS filter evasion sheet, DOMPurify's and marked's own tests; attacks by way of Markdown and MathML.
"""

import json
from typing import Any

import pytest

from engines.scripted import Line
from tests.console.conftest import LINES, Open, Serve, Watched, ask, wait_for_answer

pytestmark = pytest.mark.browser

ATTACKS = (
    "<script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1><script>window.hit=1</script></svg>",
    "<svg><animate onbegin=window.hit=1 attributeName=x dur=1s></svg>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "<iframe src=javascript:parent.hit=1></iframe>",
    "<object data=data:text/html,<script>1</script>></object>",
    "<a href=javascript:window.hit=1>x</a>",
    "[x](javascript:window.hit=1)",
    "[x](JaVaScRiPt:window.hit=1)",
    "[x](&#106;avascript:window.hit=1)",
    "[x](java\tscript:window.hit=1)",
    "[x](data:text/html;base64,PHNjcmlwdD53aW5kb3cuaGl0PTE8L3NjcmlwdD4=)",
    "[x](vbscript:window.hit=1)",
    "![x](javascript:window.hit=1)",
    '![x](https://evil.example/leak "onerror=window.hit=1")',
    '![x" onerror="window.hit=1](x)',
    '[x](https://a.example/"onmouseover="window.hit=1)',
    "[x]: javascript:window.hit=1\n\n[x]",
    "<javascript:window.hit=1>",
    "`<img src=x onerror=window.hit=1>`",
    "```html\n<script>window.hit=1</script>\n```",
    '```"><img src=x onerror=window.hit=1>\nx\n```',
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hit=1></style></mglyph></table></mtext></math>",
    "<form><math><mtext></form><form><mglyph><style></math><img src=x onerror=window.hit=1>",
    "$\\href{javascript:window.hit=1}{x}$",
    "$\\text{<img src=x onerror=window.hit=1>}$",
    '$$\\class{x" onclick="window.hit=1}{y}$$',
    "$\\style{background:url(https://evil.example/x)}{x}$",
    "$\\def\\a{\\a\\a}\\a$",
    "<style>*{background:url(https://evil.example/x)}</style>",
    "<p style='background:url(https://evil.example/x)'>x</p>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><button>x</button></form>",
    "<input autofocus onfocus=window.hit=1>",
    "<details open ontoggle=window.hit=1>x</details>",
    "<video><source onerror=window.hit=1></video>",
    "<a id=app name=app>x</a><form id=documentElement></form>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=1>'>",
    "| a | b |\n|---|---|\n| <img src=x onerror=window.hit=1> | [x](javascript:1) |",
    "- [ ] <script>window.hit=1</script>\n- [x] y",
    "<x onclick=window.hit=1>click</x>",
    "\u2028<script>window.hit=1</script>\u202e",
)
SAFE = """(root) => {
  const bad = [...document.querySelectorAll(`${root} *`)].filter((element) =>
    /^(script|iframe|object|embed|style|link|meta|base|form|input|img|video|audio|svg)$/i.test(element.localName)
    && !element.closest('svg.strip')
    || [...element.attributes].some((one) => one.name.startsWith('on')
      || one.name === 'style' && element.closest('.markdown')
      || /^(href|src|action|xlink:href)$/.test(one.name) && !/^(https?|mailto):/.test(one.value)))
  return bad.map((element) => element.outerHTML)
}"""


@pytest.fixture
def fetched() -> list[str]:
    return []


def watch_requests(page: Any, own: str, fetched: list[str]) -> None:
    page.on("request", lambda request: None if request.url.startswith((own, "blob:")) else fetched.append(request.url))


def test_answers_cannot_run_or_fetch_anything(serve: Serve, open_page: Open, fetched: list[str]) -> None:
    """All attacks in one conversation; each answer comes in pieces of seven characters."""
    lines = {f"attack{number}.": Line(pieces=_pieces(text)) for number, text in enumerate(ATTACKS)}
    served = serve(lines=lines | LINES)
    page = open_page(served.url)
    watch_requests(page, served.url, fetched)
    for number in range(len(ATTACKS)):
        page.get_by_role("button", name="New conversation").click()
        ask(page, f"attack{number}.")
        wait_for_answer(page)
        assert page.evaluate(SAFE, ".turns") == [], ATTACKS[number]
        assert page.evaluate("window.hit") is None, ATTACKS[number]
        assert page.locator(".answer .markdown").inner_text() != "", ATTACKS[number]
    assert fetched == []


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(text[start : start + 7] for start in range(0, len(text), 7))


@pytest.mark.parametrize("shown", ["as text", "token by token"])
def test_compared_answers_cannot_either(serve: Serve, open_page: Open, fetched: list[str], shown: str) -> None:
    served = serve(lines={f"attack{number}.": Line(pieces=_pieces(text)) for number, text in enumerate(ATTACKS)})
    page = open_page(served.url, "compare")
    watch_requests(page, served.url, fetched)
    for number in range(0, len(ATTACKS), 4):
        page.goto(f"{served.url}/?{number}#/compare")
        page.get_by_label(shown).check()
        page.fill("textarea", f"attack{number}.")
        page.get_by_role("button", name="Compare").click()
        page.wait_for_selector(".summary >> text=Both gave")
        assert page.evaluate(SAFE, ".side") == [], ATTACKS[number]
        assert page.evaluate("window.hit") is None, ATTACKS[number]
    assert fetched == []


def test_html_of_a_model_is_shown_as_text(serve: Serve, open_page: Open) -> None:
    served = serve(lines={"html": Line(pieces=("a <b>bold</b> ", "<script>x</script>"))})
    page = open_page(served.url)
    ask(page, "html")
    assert "a <b>bold</b> <script>x</script>" in wait_for_answer(page).locator(".markdown").inner_text()


def test_prompts_titles_and_files_cannot_either(serve: Serve, open_page: Open, fetched: list[str]) -> None:
    served = serve()
    page = open_page(served.url)
    watch_requests(page, served.url, fetched)
    for attack in (ATTACKS[0], ATTACKS[1], ATTACKS[4]):
        page.get_by_role("button", name="New conversation").click()
        page.set_input_files(
            ".composer input[type=file]", {"name": f"{attack}.txt", "mimeType": "text/plain", "buffer": attack.encode()}
        )
        ask(page, f"quick {attack}")
        wait_for_answer(page)
        assert page.evaluate(SAFE, ".turns") == []
    facts = dict.fromkeys(("path", "task", "cache", "student", "finish", "reason"), ATTACKS[1])
    turns = [
        {"role": "assistant", "text": ATTACKS[1], "facts": facts},
        {"role": "user", "text": ATTACKS[1], "attachments": [{"name": ATTACKS[1], "text": ATTACKS[1]}]},
    ]
    kept = {"conversations": [{"id": ATTACKS[1], "title": ATTACKS[1], "changed": 1, "turns": turns}]}
    page.set_input_files(
        ".list input[type=file]", {"name": "x.json", "mimeType": "text/plain", "buffer": json.dumps(kept).encode()}
    )
    page.locator(".list li button:first-child").first.click()
    page.wait_for_selector(".turn.answer .facts")
    assert page.evaluate(SAFE, ".turns") == []
    assert page.evaluate("window.hit") is None
    assert fetched == []


def test_names_from_the_server_cannot_either(serve: Serve, open_page: Open) -> None:
    served = serve()
    page = open_page(served.url)

    def rename(route: Any) -> None:
        text = route.fetch().text().replace("narrow", ATTACKS[1].replace('"', "'"))
        route.fulfill(body=text, content_type="application/json")

    for address in ("**/console/facts", "**/console/state", "**/v1/models"):
        page.route(address, rename)
    for view in ("students", "live", "compare", "route", "chat"):
        page.goto(f"{served.url}/?{view}#/{view}")
        page.wait_for_selector("main h1")
        page.wait_for_timeout(300)
        assert page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
        assert page.evaluate("window.hit") is None


def test_policy_holds_even_if_html_slipped_through(serve: Serve, open_page: Open, watched: Watched) -> None:
    """The last line of defence: text cannot become HTML but through the sanitiser, and no page may frame this one."""
    watched.expected += ["TrustedHTML"]
    page = open_page(serve().url)
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<img src=x onerror=window.hit=1>'; return false }"
        " catch (error) { return error instanceof TypeError } }"
    )
    assert refused is True
    page.evaluate("window.violations.length = 0")
