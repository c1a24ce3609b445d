"""What `vllm bench serve` sends and how it reads the answers: its own request functions, alone, out of its wheel. The
command itself needs the whole package with a GPU's torch, 10 GB.
"""

import asyncio
import re
import zipimport
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.programs.program import Result, Target, run

(WHEEL,) = (Path(__file__).parents[3] / ".venv-clients" / "load" / "wheels").glob("vllm-*.whl")
FUNCTIONS: Any = zipimport.zipimporter(f"{WHEEL}/vllm/benchmarks/lib").load_module("endpoint_request_func")
BACKENDS = {"openai-chat": "/v1/chat/completions", "openai": "/v1/completions"}
NUM_TOKENS = 16


async def send(to: Target, backend: str, model: str) -> Any:
    given = FUNCTIONS.RequestFuncInput(
        prompt=to.prompts["chat"],
        api_url=to.url + BACKENDS[backend],
        prompt_len=8,
        output_len=NUM_TOKENS,
        model=model,
        ignore_eos=True,
        extra_headers={"Authorization": f"Bearer {to.key}"},
        extra_body={"temperature": 0},
    )
    async with aiohttp.ClientSession() as session:
        return await FUNCTIONS.ASYNC_REQUEST_FUNCS[backend](given, session)


def sent(to: Target, model: str) -> list[Any]:
    async def send_all() -> list[Any]:
        return await asyncio.gather(*(send(to, backend, model) for backend in BACKENDS))

    return asyncio.run(send_all())


def load(to: Target) -> Result:
    answers = sent(to, to.model)
    return {
        "expected": len(BACKENDS),
        "succeeded": sum(answer.success and answer.output_tokens == NUM_TOKENS for answer in answers),
        "failed": [answer.error for answer in answers if not answer.success],
        "tokens": [answer.output_tokens for answer in answers],
    }


def errors(to: Target) -> Result:
    answers = sent(to, "no-such-model")
    assert not any(answer.success for answer in answers)
    return {"counted": [answer.error for answer in answers]}


if __name__ == "__main__":
    found = re.match(r"vllm-([\d.]+)-", WHEEL.name)
    assert found is not None
    run({"load": load, "errors": errors}, vllm=found[1])
