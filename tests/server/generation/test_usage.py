"""What answers took. The tiny student, counted by hand: a layer has 8 * (2 * 8 + 2 * 4 + 3 * 16) = 576 multiply-adds a
token, the head 8 * 258 = 2064. So the full path's ten layers have 5760, the shallow path's three and its exit's one
2304, and an answer token 7824 and 4368."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engines.scripted import Line
from engines.sequence import Finish, FinishReason, Timings, Usage
from models.errors import StepFailed
from models.student.manifest import CheapHead, HeadKind
from server.generation.plan import Plan
from server.generation.usage import compute_of, token_share, total_usage
from tests.server.conftest import Served, Start
from tests.server.generation.conftest import Open

LAYERS = {"full": 5760, "shallow": 2304}
HEAD = 2064
CHEAP = CheapHead(rank=2, num_frequent=10, num_candidates=6, sha256="0" * 64)
CHEAP_HEAD = 660
"""2 * (8 + 258) for the preview, 16 * 8 for tokens computed exactly."""
TIMINGS = Timings(queued_s=0.0, admitted_s=0.0, first_token_s=0.0, finished_s=1.0)


def finish(path: str, num_prompt: int, num_cached: int, num_completion: int) -> Finish:
    usage = Usage(num_prompt_tokens=num_prompt, num_cached_tokens=num_cached, num_completion_tokens=num_completion)
    return Finish(reason=FinishReason.STOP, path=path, usage=usage, timings=TIMINGS)


async def plan_with(open_backend: Open, head: HeadKind = "exact", **fields: Any) -> Plan:
    """A plan of a student that has a cheap head."""
    plan = (await (backend := open_backend()).supplier(backend.order(**fields))).plan
    student = plan.student.student
    plan.student.student = replace(  # type: ignore[type-var]
        student, manifest=msgspec.structs.replace(student.manifest, cheap_head=CHEAP)
    )
    return replace(plan, target=replace(plan.target, head=head))


@pytest.mark.parametrize(
    ("path", "head", "expected"),
    [
        ("full", "exact", 1.0),
        ("shallow", "exact", 4368 / 7824),
        ("full", "cheap", (5760 + 660) / 7824),
        ("shallow", "cheap", (2304 + 660) / 7824),
    ],
)
async def test_share_of_an_answer_token_is_that_of_its_path_and_head(
    open_backend: Open, path: str, head: HeadKind, expected: float
) -> None:
    assert token_share(await plan_with(open_backend, head), path) == pytest.approx(expected)


@pytest.mark.parametrize(("head", "head_cost"), [("exact", HEAD), ("cheap", CHEAP_HEAD)])
async def test_usage_counts_what_was_computed_and_what_the_full_path_would_have(
    open_backend: Open, head: HeadKind, head_cost: int
) -> None:
    usage = total_usage(await plan_with(open_backend, head), [finish("shallow", 30, 20, 5)])
    spent, full = 15 * LAYERS["shallow"] + 5 * head_cost, 15 * LAYERS["full"] + 5 * HEAD
    assert (usage.fenhe.multiply_adds, usage.fenhe.full_multiply_adds) == (spent, full)
    assert usage.fenhe.compute_share == round(spent / full, 4)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (30, 5, 20)


async def test_usage_adds_up_every_choice_although_prompts_count_once(open_backend: Open) -> None:
    plan = await plan_with(open_backend, n=2)
    usage = total_usage(plan, [finish("full", 30, 0, 5), finish("full", 30, 29, 4)])
    assert usage.fenhe.multiply_adds == usage.fenhe.full_multiply_adds == (35 + 5) * 5760 + 9 * HEAD
    assert (usage.prompt_tokens, usage.total_tokens, usage.fenhe.compute_share) == (30, 39, 1.0)


async def test_scored_prompt_tokens_need_the_exact_head(open_backend: Open) -> None:
    plan = await plan_with(open_backend, "cheap")
    request = plan.job.requests[0]
    scored = replace(request, sampling=replace(request.sampling, prompt_logprobs=0))
    plan = replace(plan, job=replace(plan.job, requests=(scored,)))
    compute = compute_of(plan, [finish("full", 30, 0, 1)])  # the first token has no score
    assert compute.spent == 31 * 5760 + 29 * HEAD + 1 * CHEAP_HEAD
    assert compute.full == 31 * 5760 + 30 * HEAD


async def test_usage_of_nothing_computed_has_a_share_of_zero(open_backend: Open) -> None:
    usage = total_usage(await plan_with(open_backend), [finish("full", 7, 7, 0)])
    assert (usage.fenhe.compute_share, usage.fenhe.multiply_adds, usage.fenhe.full_multiply_adds) == (0.0, 0, 0)


def expected(num_prompt: int, num_completion: int, path: str) -> dict[str, Any]:
    def cost(path: str) -> int:
        return (num_prompt + num_completion) * LAYERS[path] + num_completion * HEAD

    spent, full = cost(path), cost("full")
    return {"compute_share": round(spent / full, 4), "multiply_adds": spent, "full_multiply_adds": full}


def test_official_client_reads_compute_in_usage_of_every_endpoint(served: Served) -> None:
    client: Any = served.client
    chat = {"model": "auto", "messages": [{"role": "user", "content": "math"}]}
    answer = client.chat.completions.create(**chat)
    *_, last = client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    assert answer.usage.model_extra == last.usage.model_extra
    assert answer.usage.model_extra == {"fenhe": expected(answer.usage.prompt_tokens, 4, "shallow")}
    text = {"model": "auto", "prompt": "math"}
    completion = client.completions.create(**text)
    *_, end = client.completions.create(**text, stream=True, stream_options={"include_usage": True})
    assert completion.usage.model_extra == end.usage.model_extra == {"fenhe": expected(4, 4, "shallow")}
    response = client.responses.create(model="auto", input="math")
    assert response.usage.model_extra == {"fenhe": expected(response.usage.input_tokens, 4, "shallow")}
    *_, done = client.responses.create(model="auto", input="math", stream=True)
    assert done.response.usage.model_extra == response.usage.model_extra


@pytest.mark.parametrize(("prompt", "share"), [("math", "0.56"), ("hello", "1.00")])
@pytest.mark.parametrize(
    ("path", "field"), [("/v1/chat/completions", ""), ("/v1/completions", "prompt"), ("/v1/responses", "input")]
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_header_has_the_share_of_an_answer_token(
    served: Served, path: str, field: str, prompt: str, share: str, is_stream: bool
) -> None:
    messages = {"messages": [{"role": "user", "content": prompt}]}
    body = {"model": "auto", "stream": is_stream, **({field: prompt} if field else messages)}
    response = served.post(path, body)
    assert response.headers["x-fenhe-compute"] == share


@pytest.mark.parametrize("is_stream", [False, True])
def test_header_of_what_was_not_generated_is_zero_and_usage_is_the_generations(start: Start, is_stream: bool) -> None:
    served = start()
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if is_stream else {}
    first = served.chat("math", temperature=0)
    second = served.chat("math", temperature=0, stream=is_stream, **options)
    assert [one.headers["x-fenhe-cache"] for one in (first, second)] == ["miss", "hit"]
    assert [one.headers["x-fenhe-compute"] for one in (first, second)] == ["0.56", "0.00"]
    assert f'"multiply_adds":{first.json()["usage"]["fenhe"]["multiply_adds"]}' in second.text


def test_header_and_usage_are_of_the_path_that_ran_while_loading(start: Start) -> None:
    served = start(is_loaded=False)
    served.engine.load(3)
    response = served.chat("hello", fenhe={"while_loading": "degrade", "path": "full"})
    usage = response.json()["usage"]
    assert (response.headers["x-fenhe-path"], response.headers["x-fenhe-compute"]) == ("shallow", "0.56")
    assert usage["fenhe"] == expected(usage["prompt_tokens"], 4, "shallow")


def test_errors_have_no_compute_header(start: Start) -> None:
    served = start({"broken": Line(pieces=(), error=StepFailed("the pass failed"))})
    for response in (served.chat("broken"), served.chat("hello", temperature=9), served.http.get("/v1/models")):
        assert "x-fenhe-compute" not in response.headers


async def test_tokens_whose_exact_row_was_needed_too_pay_for_both_heads(open_backend: Open) -> None:
    ended = finish("shallow", 30, 0, 5)
    ended = replace(ended, usage=replace(ended.usage, num_exact_rows=3))
    compute = compute_of(await plan_with(open_backend, "cheap"), [ended])
    assert compute.spent == 35 * LAYERS["shallow"] + 5 * CHEAP_HEAD + 3 * HEAD
    assert compute.full == 35 * LAYERS["full"] + 5 * HEAD
