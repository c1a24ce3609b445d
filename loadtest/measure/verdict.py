"""Whether a run counts: what makes it invalid, what it missed, and the exit status that says so."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

from loadtest.measure.figures import Figures
from loadtest.measure.record import Record
from loadtest.traffic.workload import Limit, Slo, Workload

SUCCESS = 0.999
LEAST_ANSWERED = 0.5
PROMPT_TOLERANCE = 0.25


class Status(IntEnum):
    """Exit statuses of a run. `INVALID`: it says nothing of the server, for the generator was at fault."""

    GOOD = 0
    MISSED = 1
    CANNOT_MEASURE = 2
    INVALID = 3


def invalid_because(figures: Figures, workload: Workload) -> list[str]:
    problems = []
    limits = workload.validity
    late, cpu = figures.get("late_share", 0.0), figures.get("generator_cpu_share", 0.0)
    if late > limits.most_late:
        problems.append(f"{late:.1%} of the sessions began late; at most {limits.most_late:.0%} may")
    if cpu > limits.most_generator_cpu:
        most = f"at most {limits.most_generator_cpu:.0%}: add --processes"
        problems.append(f"the generator took {cpu:.0%} of its core; {most}")
    repeats = workload.repeats
    found, expected = figures.get("hit_ratio", 0.0), figures.get("repeat_ratio", 0.0)
    if repeats is not None and found and abs(found - expected) > repeats.tolerance:
        problems.append(
            f"the cache answered {found:.1%} where {expected:.1%} were repeats"
            + ("; the server knew the prompts of this seed: take another" if found > expected else "")
        )
    return problems


def missed(figures: Figures, thresholds: Mapping[str, Limit]) -> list[str]:
    """A figure that is not there misses its threshold."""
    problems = []
    for name, limit in thresholds.items():
        value = figures.get(name)
        if value is None:
            problems.append(f"{name} was not seen")
        elif limit.least is not None and value < limit.least:
            problems.append(f"{name} is {value:.4g}, at least {limit.least:.4g} is wanted")
        elif limit.most is not None and value > limit.most:
            problems.append(f"{name} is {value:.4g}, at most {limit.most:.4g} is wanted")
    return problems


def cannot_measure(records: Sequence[Record]) -> str | None:
    """Why there is nothing to measure: most requests failed, and this is how."""
    failures = Counter(record.failure for record in records if record.failure is not None)
    num_failed = failures.total()
    if not records:
        return "no session began in the measured window: lengthen it, or raise the rate"
    if num_failed <= LEAST_ANSWERED * len(records):
        return None
    what, count = failures.most_common(1)[0]
    return f"{num_failed} of {len(records)} requests failed, {count} of them with: {what}"


def keeps_slo(figures: Figures, slo: Slo, success: float = SUCCESS) -> bool:
    """Nearly every request succeeds, and the 95th percentiles are within the SLO."""
    limits = {"ttft": slo.ttft_ms, "tpot": slo.tpot_ms, "e2el": slo.e2el_ms}
    return figures.get("success_rate", 0.0) >= success and all(
        limit is None or figures.get(f"p95_{name}_ms", 0.0) <= limit for name, limit in limits.items()
    )


def remarks(figures: Figures, workload: Workload, records: Sequence[Record]) -> Iterator[str]:
    """What a reader should know although it spoils nothing."""
    wanted = workload.prompts.tokens.median + workload.prompts.system_tokens
    found = figures.get("median_prompt_tokens")
    if found and abs(found / wanted - 1) > PROMPT_TOLERANCE:
        yield (
            f"the server counted {found:.0f} prompt tokens in the median, its chat template with it; "
            f"the workload's texts have about {wanted}"
        )
    if any(record.is_counted_by_chunks for record in records):
        yield "the server tells no usage: answer tokens are its chunks with content"
    if workload.repeats is not None and not figures.get("hit_ratio"):
        yield "no repeat was answered from a result cache: all of them were generated anew"
