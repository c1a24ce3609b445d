"""Attacks of one tenant on the others: deadlines, grammars, and parameters that make rows expensive."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx

from loadtest.chaos.attack import Attack, Observation, Target, at_most, each, only
from loadtest.chaos.bodies import chat, observed, post_all
from loadtest.chaos.sockets import post
from loadtest.soak_kinds import CHAT, contradicting_patterns

NUM_COSTLY = 12
NUM_OTHERS = 10
NUM_WIDE = 2_000
MAX_WIDTH = 256
NUM_IDS = 49_152
NUM_ROWS = 8


def _schema(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return chat("Answer.", response_format=wanted, **fields)


def _object(properties: dict[str, Any], *, required: bool) -> dict[str, Any]:
    names = list(properties) if required else []
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def short_deadlines(target: Target) -> Observation:
    """After long answers of one tenant another asks for an answer that may be short, on a server with nothing to do."""
    long = chat("Tell me everything.", max_tokens=300, ignore_eos=True)
    post_all(target, [(CHAT, long)] * 4)
    time.sleep(0.5)
    seen = Observation()
    for number in range(3):
        body = chat(f"Say yes. {number}", max_tokens=600, stop=["e", "a", "\n"])
        reply = post(target, CHAT, body, key=target.other_key, x_fenhe_deadline_ms="1500")
        is_for_good = reply.status != 200 and reply.headers.get("x-should-retry") == "false" and reply.seconds < 1.0
        seen.note("refused at once" if is_for_good else reply.status)
    return seen


def costly_schemas(target: Target) -> Observation:
    """Schemas that take longer to compile than they may, beside small ones of another tenant."""
    seen = Observation(figures={"slowest s": 0.0})
    costly = [(CHAT, _schema(contradicting_patterns(30 + number), max_tokens=4)) for number in range(NUM_COSTLY)]
    with ThreadPoolExecutor(1) as pool:
        attacking = pool.submit(post_all, target, costly)
        time.sleep(0.5)
        for number in range(NUM_OTHERS):
            begun_s = time.monotonic()
            seen.note(f"other {_small_answer(target, number)}")
            seen.figures["slowest s"] = max(seen.figures["slowest s"], time.monotonic() - begun_s)
        seen.outcomes += observed(attacking.result()).outcomes
    return seen


def _small_answer(target: Target, number: int) -> str:
    body = _schema(_object({f"ok{number}": {"type": "boolean"}}, required=True), max_tokens=20)
    try:
        return str(post(target, CHAT, body, key=target.other_key).status)
    except httpx.HTTPError:
        return "no answer"


def wide_schemas(target: Target) -> Observation:
    """More optional properties than can be followed, and rows of as many as can."""
    wide = _object({f"p{index}": {"type": "integer"} for index in range(NUM_WIDE)}, required=False)
    seen = Observation()
    for reply in post_all(target, [(CHAT, _schema(wide, max_tokens=20))]):
        seen.note(f"wide {'no answer' if reply is None else reply.status}")
    allowed = _object({f"p{index}": {"type": "integer"} for index in range(MAX_WIDTH)}, required=False)
    rows = [(CHAT, _schema(allowed, max_tokens=40, temperature=1.0, seed=seed)) for seed in range(NUM_ROWS)]
    for reply in post_all(target, rows):
        seen.note(f"allowed {'no answer' if reply is None else reply.status}")
    return seen


def expensive_rows(fields: dict[str, Any], target: Target) -> Observation:
    rows = [
        (CHAT, chat("hello", max_tokens=60, ignore_eos=True, temperature=1.0, seed=seed, **fields))
        for seed in range(NUM_ROWS)
    ]
    return observed(post_all(target, rows))


def _expensive(name: str, fields: dict[str, Any]) -> Attack:
    run = partial(expensive_rows, fields)
    return Attack(name=name, expected="answered", run=run, rules=(only("200", "400"),))


SHARING = (
    Attack(
        name="long answers, then another's deadline",
        expected="not refused for good on an idle server",
        run=short_deadlines,
        rules=(only("200", "504"),),
    ),
    Attack(
        name=f"{NUM_COSTLY} costly schemas",
        expected="others' are answered within 5 s",
        run=costly_schemas,
        rules=(only("200", "400", "429", "503", "other 200"), each("other 200"), at_most("slowest s", 5.0)),
    ),
    Attack(
        name=f"{NUM_WIDE:,} optional properties",
        expected=f"400; {MAX_WIDTH} are answered",
        run=wide_schemas,
        rules=(only("wide 400", "allowed 200"), each("wide 400", "allowed 200")),
    ),
    _expensive("logit_bias on all ids", {"logit_bias": {str(index): -1 for index in range(NUM_IDS)}}),
    _expensive("min_p 1e-30", {"min_p": 1e-30}),
    _expensive("top_p 0.9999999", {"top_p": 0.9999999}),
)
