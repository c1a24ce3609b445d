"""The figures of a run and their formulas. Where `vllm bench serve` has the name, the formula is the same.

Source: vLLM 0.33, benchmarks/serve.py and lib/endpoint_request_func.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from loadtest.measure.record import HITS, Record
from loadtest.traffic.workload import Slo

LATE_S = 0.010
"""A session that begins later than that after its moment was late."""
PERCENTILES = (50, 90, 95, 99, 99.9)
FORMULAS = {
    "ttft": "arrival of the first chunk with content - request sent",
    "itl": "arrival of a chunk with content - arrival of the one before, all requests together",
    "tpot": "(arrival of the last chunk with content - that of the first) / (answer tokens - 1), per request",
    "e2el": "arrival of the last chunk with content - request sent",
    "answer tokens": "usage.completion_tokens of the server; its chunks with content where it tells no usage",
    "completed": "requests whose whole answer came; those that left on purpose are counted apart",
    "success_rate": "completed / (completed + failed)",
    "duration": "of the measured window within the run: rates count what ended in it, all else what began in it",
    "request_throughput": "completed requests that ended in the window / duration",
    "output_throughput": "their answer tokens / duration",
    "total_token_throughput": "their prompt tokens + answer tokens / duration",
    "request_goodput": "those of them within every limit of the SLO / duration; TPOT of one token counts as 0",
    "user_tokens_per_s": "1 / median TPOT",
    "late_share": f"sessions that began more than {LATE_S * 1000:g} ms after their moment / sessions of an open loop",
    "hit_ratio": "first turns whose x-fenhe-cache was hit or join / first turns with that header",
    "repeat_ratio": "those of them that the workload repeats; a hit ratio that differs makes the run invalid",
    "percentiles": "numpy's linear interpolation between the two nearest requests",
}
Figures = dict[str, float]


def ttft_s(record: Record) -> float | None:
    return None if record.first_s is None else record.first_s - record.sent_s


def e2el_s(record: Record) -> float | None:
    return None if record.last_s is None else record.last_s - record.sent_s


def tpot_s(record: Record) -> float | None:
    if record.first_s is None or record.last_s is None or record.num_answer_tokens < 2:
        return None
    return (record.last_s - record.first_s) / (record.num_answer_tokens - 1)


LATENCIES: Mapping[str, Callable[[Record], float | None]] = {"ttft": ttft_s, "tpot": tpot_s, "e2el": e2el_s}


def is_good(record: Record, slo: Slo) -> bool:
    """Complete, and within every limit of the SLO."""
    limits = {"ttft": slo.ttft_ms, "tpot": slo.tpot_ms, "e2el": slo.e2el_ms}
    return record.is_complete and all(
        limit is None or (LATENCIES[name](record) or 0.0) * 1000 <= limit for name, limit in limits.items()
    )


def latencies_ms(records: Iterable[Record], name: str) -> list[float]:
    """Of the complete ones; `name` is ttft, tpot or e2el."""
    found = (LATENCIES[name](record) for record in records if record.is_complete)
    return [value * 1000 for value in found if value is not None]


def measured(records: Sequence[Record], start_s: float, end_s: float) -> list[Record]:
    """Those whose moment lies in the window: a late one belongs where it should have been."""
    return [record for record in records if start_s <= record.scheduled_s < end_s]


def figures_of(records: Sequence[Record], start_s: float, end_s: float, slo: Slo) -> Figures:
    """Of the window. A figure that nothing was seen for is left out."""
    inside = measured(records, start_s, end_s)
    complete = [record for record in inside if record.is_complete]
    failed = sum(record.failure is not None for record in inside)
    found = {
        "completed": len(complete),
        "failed": failed,
        "left": sum(record.has_left and record.failure is None for record in inside),
        "total_input_tokens": sum(record.num_prompt_tokens for record in complete),
        "total_output_tokens": sum(record.num_answer_tokens for record in complete),
        **_rates([record for record in records if start_s <= record.ended_s < end_s], end_s - start_s, slo),
    }
    if complete or failed:
        found["success_rate"] = len(complete) / (len(complete) + failed)
    for name in LATENCIES:
        found |= spread(latencies_ms(complete, name), name)
    found |= spread([gap * 1000 for record in complete for gap in record.gaps_s], "itl")
    if found.get("median_tpot_ms"):
        found["user_tokens_per_s"] = 1000 / found["median_tpot_ms"]
    return found | _prompts(complete) | hit_ratio(inside)


def _rates(ended: Sequence[Record], duration_s: float, slo: Slo) -> Figures:
    complete = [record for record in ended if record.is_complete]
    num_answer_tokens = sum(record.num_answer_tokens for record in complete)
    num_prompt_tokens = sum(record.num_prompt_tokens for record in complete)
    return {
        "duration": duration_s,
        "request_throughput": len(complete) / duration_s,
        "output_throughput": num_answer_tokens / duration_s,
        "total_token_throughput": (num_prompt_tokens + num_answer_tokens) / duration_s,
        "request_goodput": sum(is_good(record, slo) for record in complete) / duration_s,
    }


def spread(values_ms: Sequence[float], name: str) -> Figures:
    if not values_ms:
        return {}
    found = {f"mean_{name}_ms": float(np.mean(values_ms))}
    for percentile, value in zip(PERCENTILES, np.percentile(values_ms, PERCENTILES), strict=True):
        found[f"{percentile_name(percentile)}_{name}_ms"] = float(value)
    return found


def percentile_name(percentile: float) -> str:
    return "median" if percentile == 50 else f"p{percentile:g}"


def hit_ratio(records: Sequence[Record]) -> Figures:
    """Nothing where the server does not tell."""
    told = [record for record in records if record.turn == 0 and record.cache is not None]
    if not told:
        return {}
    return {
        "hit_ratio": sum(record.cache in HITS for record in told) / len(told),
        "repeat_ratio": sum(record.is_repeat for record in told) / len(told),
    }


def late_share(records: Sequence[Record], start_s: float, end_s: float) -> Figures:
    """Of the first turns of an open loop, and how late the latest percent was."""
    late_s = [record.sent_s - record.scheduled_s for record in measured(records, start_s, end_s) if record.turn == 0]
    if not late_s:
        return {}
    return {
        "late_share": sum(late > LATE_S for late in late_s) / len(late_s),
        "p99_late_ms": float(np.percentile(late_s, 99)) * 1000,
    }


def _prompts(records: Sequence[Record]) -> Figures:
    lengths = [record.num_prompt_tokens for record in records if record.num_prompt_tokens]
    return {"median_prompt_tokens": float(np.median(lengths))} if lengths else {}


def figure_names() -> tuple[str, ...]:
    """Every figure that a run may have."""
    record = Record(session=0, task="math", scheduled_s=0, sent_s=0, first_s=1, last_s=2, gaps_s=[1], cache="hit")
    record.num_answer_tokens = record.num_prompt_tokens = 2
    found = figures_of([record], 0, 1, Slo()) | late_share([record], 0, 1)
    return (*found, "generator_cpu_share")
