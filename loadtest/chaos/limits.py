"""Every endpoint at the largest that it takes: what the event loop does meanwhile is what counts."""

from functools import partial
from typing import Any

import httpx

from loadtest.chaos.attack import Attack, Observation, Target, only
from loadtest.chaos.bodies import TAKEN_OR_REFUSED, chat, letters, observed, post_all, prose
from loadtest.soak_kinds import CHAT, COMPLETIONS, COUNT, DEBUG, MESSAGES, RESPONSES

BODY_BYTES = 1_950_000
"""A little less than `limits.max_body_bytes`."""
PAGES = ("/metrics", "/openapi.json", "/v1/models", "/readyz", "/startup", DEBUG)
SPREAD = 32


def send_body(path: str, body: dict[str, Any], target: Target) -> Observation:
    return observed(post_all(target, [(path, body)]))


def see_pages(target: Target) -> Observation:
    seen = Observation()
    for path in PAGES:
        key = target.admin_key if path == DEBUG else target.key
        reply = httpx.get(target.url + path, headers={"authorization": f"Bearer {key}"}, timeout=30.0)
        seen.note(reply.status_code)
    return seen


def bodies_of(num_bytes: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """One body of about this size for every way to send one."""
    text, model = prose(num_bytes), {"model": "auto"}
    parts = [text[start : start + num_bytes // SPREAD] for start in range(0, num_bytes, max(num_bytes // SPREAD, 1))]
    messages = [{"role": "user", "content": "x"}] * (num_bytes // 33)
    ids = [index % 4000 + 1000 for index in range(num_bytes // 6)]
    items = [{"type": "text", "text": "x"}] * (num_bytes // 30)
    foreign = [{"type": "bash_20250124"}] * (num_bytes // 30)
    return {
        "/tokenize, words": ("/tokenize", {**model, "prompt": text}),
        "/tokenize, one word": ("/tokenize", {**model, "prompt": letters(num_bytes)}),
        "/tokenize, texts of tokens": ("/tokenize", {**model, "prompt": text, "return_token_strs": True}),
        "/tokenize, messages": ("/tokenize", {**model, "messages": messages}),
        "/detokenize": ("/detokenize", {**model, "tokens": ids}),
        "chat, one message": (CHAT, chat(text)),
        "chat, many messages": (CHAT, {**model, "messages": messages}),
        "chat, many parts": (CHAT, {**model, "messages": [{"role": "user", "content": items}]}),
        "completions, one prompt": (COMPLETIONS, {**model, "prompt": text}),
        "completions, many prompts": (COMPLETIONS, {**model, "prompt": parts[:SPREAD]}),
        "completions, token ids": (COMPLETIONS, {**model, "prompt": ids}),
        "responses": (RESPONSES, {**model, "input": text}),
        "responses, many items": (RESPONSES, {**model, "input": messages}),
        "messages, one message": (
            MESSAGES,
            {**model, "max_tokens": 1, "messages": [{"role": "user", "content": text}]},
        ),
        "messages, many turns": (MESSAGES, {**model, "max_tokens": 1, "messages": messages}),
        "messages, many blocks": (
            MESSAGES,
            {**model, "max_tokens": 1, "messages": [{"role": "user", "content": items}]},
        ),
        "messages, many tools": (MESSAGES, {**model, "max_tokens": 1, "messages": messages[:1], "tools": foreign}),
        "count_tokens": (COUNT, {**model, "messages": messages}),
        "route": ("/v1/route", {**model, "prompt": text}),
        "embeddings": ("/v1/embeddings", {**model, "input": text}),
    }


def at_limits(num_bytes: int = BODY_BYTES) -> tuple[Attack, ...]:
    bodies = [
        Attack(
            name=f"at its limit: {name}",
            expected="the loop goes on",
            run=partial(send_body, path, body),
            rules=(only(*TAKEN_OR_REFUSED, "404"),),
        )
        for name, (path, body) in bodies_of(num_bytes).items()
    ]
    pages = Attack(name="pages", expected="the loop goes on", run=see_pages, rules=(only("200"),))
    return (*bodies, pages)
