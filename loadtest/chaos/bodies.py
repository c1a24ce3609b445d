"""Attacks with bodies and answers that are large but allowed."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import httpx

from loadtest.chaos.attack import Attack, Observation, Target, each, only
from loadtest.chaos.sockets import Reply, post
from loadtest.soak_kinds import CHAT, COMPLETIONS, RESPONSES, WORDS

NUM_LETTERS = 2_000_000
NUM_MESSAGES = 50_000
NUM_CHOICES, NUM_TOKENS, NUM_TOP = 15, 250, 20
TAKEN_OR_REFUSED = ("200", "400", "413", "429")
REFUSED = ("400", "413", "429")
UNCACHED = {"fenhe": {"cache": False}}


@cache
def letters(num_chars: int = NUM_LETTERS) -> str:
    return "a" * num_chars


@cache
def prose(num_chars: int) -> str:
    """Words of many kinds, none of them the last one's."""
    rng = random.Random(0)
    words = (f"{rng.choice(WORDS)}{rng.randrange(999)}" for _ in range(num_chars // 6))
    return " ".join(words)[:num_chars]


def chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": content}], **UNCACHED, **fields}


def post_all(
    target: Target, requests: Sequence[tuple[str, dict[str, Any]]], key: str | None = None
) -> list[Reply | None]:
    """All at once; None for one that got no answer."""

    def one(request: tuple[str, dict[str, Any]]) -> Reply | None:
        try:
            return post(target, request[0], request[1], key=key)
        except httpx.HTTPError:
            return None

    with ThreadPoolExecutor(max(len(requests), 1)) as pool:
        return list(pool.map(one, requests))


def observed(replies: Sequence[Reply | None]) -> Observation:
    seen = Observation()
    for reply in replies:
        seen.note("no answer" if reply is None else reply.status)
    return seen


def long_texts(target: Target) -> Observation:
    """To `/tokenize`, which may take them, twice."""
    return observed(post_all(target, [("/tokenize", {"model": "auto", "prompt": letters()})] * 2))


def long_prompts(target: Target) -> Observation:
    """To everything that generates."""
    bodies = [
        (CHAT, chat(letters())),
        (COMPLETIONS, {"model": "auto", "prompt": letters()}),
        (RESPONSES, {"model": "auto", "input": letters()}),
    ]
    return observed(post_all(target, bodies))


def many_messages(target: Target) -> Observation:
    messages = [{"role": "user", "content": "x"}] * NUM_MESSAGES
    return observed(post_all(target, [(CHAT, {"model": "auto", "messages": messages})] * 2))


def large_answers(target: Target) -> Observation:
    """Many choices, each with many tokens, each with many log-probabilities."""
    body = chat("hello", n=NUM_CHOICES, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=True, top_logprobs=NUM_TOP)
    replies = post_all(target, [(CHAT, body)])
    seen = observed(replies)
    seen.figures["MB"] = sum(len(reply.body) for reply in replies if reply is not None) / 1e6
    return seen


BODIES = (
    Attack(
        name=f"{NUM_LETTERS:,} letters to /tokenize",
        expected="an answer or a refusal",
        run=long_texts,
        rules=(only(*TAKEN_OR_REFUSED),),
    ),
    Attack(
        name=f"{NUM_LETTERS:,} letters as a prompt",
        expected="refused",
        run=long_prompts,
        rules=(only(*REFUSED), each("400")),
    ),
    Attack(
        name=f"{NUM_MESSAGES:,} messages",
        expected="refused",
        run=many_messages,
        rules=(only(*REFUSED), each("400")),
    ),
    Attack(
        name=f"{NUM_CHOICES} x {NUM_TOKENS} tokens x {NUM_TOP} logprobs",
        expected="answered",
        run=large_answers,
        rules=(only("200"),),
    ),
)
