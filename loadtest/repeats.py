"""`python -m loadtest.repeats`: requests per second when many requests are equal, with and without the result cache.

One server; in every round requests are sent with `"fenhe": {"cache": false}`, then others of the same kind without it.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.served import ServedProcess
from loadtest.soak_kinds import CHAT, WORDS

NUM_HOT = 50
PATIENCE_S = 120.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Options:
    """`share` of the requests repeat one of `NUM_HOT` prompts; the others are new."""

    share: float = 0.75
    num_requests: int = 300
    num_clients: int = 32
    num_rounds: int = 3
    max_tokens: int = 32
    student: Path | None = None


def bodies(options: Options, number: int) -> list[dict[str, Any]]:
    """The requests of one measurement; `number` is the seed they are drawn with."""
    rng = random.Random(number)
    hot = [f"Tell me about the {WORDS[index % len(WORDS)]} number {index}." for index in range(NUM_HOT)]
    prompts = [
        rng.choice(hot) if rng.random() < options.share else f"Tell me about {rng.choice(WORDS)} {rng.random()}."
        for _ in range(options.num_requests)
    ]
    fields = {"model": "auto", "temperature": 0, "max_tokens": options.max_tokens, "ignore_eos": True}
    return [{**fields, "messages": [{"role": "user", "content": prompt}]} for prompt in prompts]


async def rate(client: httpx.AsyncClient, options: Options, requests: list[dict[str, Any]]) -> float:
    """Requests per second. Raises: RuntimeError when one fails."""
    left = iter(requests)

    async def work() -> None:
        for body in left:
            reply = await client.post(CHAT, json=body)
            if reply.status_code != 200:
                raise RuntimeError(f"status {reply.status_code}: {reply.text[:300]}")

    begun_s = time.monotonic()
    await asyncio.gather(*(work() for _ in range(options.num_clients)))
    return len(requests) / (time.monotonic() - begun_s)


async def measure(url: str, options: Options) -> list[tuple[float, float]]:
    """Rates without and with the cache, per round; the first round warms up and does not count."""
    rounds = []
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        for number in range(options.num_rounds + 1):
            uncached = [{**body, "fenhe": {"cache": False}} for body in bodies(options, 2 * number)]
            without = await rate(client, options, uncached)
            rounds.append((without, await rate(client, options, bodies(options, 2 * number + 1))))
            print(f"round {number}: {without:.1f} without, {rounds[-1][1]:.1f} with", file=sys.stderr, flush=True)
    return rounds[1:]


def run(options: Options) -> dict[str, Any]:
    log = Path(tempfile.mkdtemp(prefix="fenhe-repeats-")) / "server.log"
    arguments = [] if options.student is None else ["--student", str(options.student)]
    server = ServedProcess({"FENHE_LOG_LEVEL": "warning"}, log, arguments)
    try:
        rounds = asyncio.run(measure(server.wait_for_url(), options))
    finally:
        server.stop()
    ratios = [with_cache / without for without, with_cache in rounds]
    return {
        "requests_per_s_without": statistics.median(without for without, _ in rounds),
        "requests_per_s_with": statistics.median(with_cache for _, with_cache in rounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.repeats", description=__doc__)
    parser.add_argument(
        "--share", type=float, default=0.75, help="of requests that repeat a prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--requests", type=int, default=300, help="per round, with and without the cache each (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=32, help="at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="after a warm-up round (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of every answer (default: %(default)s)")
    parser.add_argument("--student", type=Path, default=None, metavar="DIR", help="default: the default student")
    given = parser.parse_args()
    if not 0.0 <= given.share <= 1.0 or min(given.requests, given.clients, given.rounds, given.tokens) < 1:
        parser.error("--share lies between 0 and 1, the others are at least 1")
    options = Options(
        share=given.share,
        num_requests=given.requests,
        num_clients=given.clients,
        num_rounds=given.rounds,
        max_tokens=given.tokens,
        student=given.student,
    )
    print(json.dumps(run(options), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
