"""What is measured, as data: which subjects take part in a case, its tasks, how often. Formulas are in `figures.py`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from bench.protocol import Generate, MixedStep, Occupy, Score, Stall, StartUp, Task
from bench.workload import Workload, shorten

REFERENCE_PRECISION = "fp32"
PROMPT_TOKENS = 24
FEW_SEQUENCES = 8
NUM_SEQUENCES = 32
PREFILL_TOKENS = 512
INTRUDER_TOKENS = 2000
SLOT_TOKENS = 1024
MIXED_ROWS = 30
MIXED_PROMPT_TOKENS = 64


class Role(Enum):
    """Kinds of subject: another engine, ours in process, ours over HTTP."""

    PEER = "peer"
    FENHE = "fenhe"
    SERVE = "serve"


@dataclass(slots=True, kw_only=True, frozen=True)
class Effort:
    """How much is measured per case and round."""

    decode_tokens: int
    stream_repeats: int
    job_repeats: int
    prefill_repeats: int
    step_repeats: int
    score_tokens: int
    one_row_tokens: int


FULL_EFFORT = Effort(
    decode_tokens=128,
    stream_repeats=3,
    job_repeats=2,
    prefill_repeats=5,
    step_repeats=40,
    score_tokens=20_000,
    one_row_tokens=600,
)
QUICK_EFFORT = Effort(
    decode_tokens=48,
    stream_repeats=2,
    job_repeats=1,
    prefill_repeats=3,
    step_repeats=15,
    score_tokens=1200,
    one_row_tokens=200,
)


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the tasks are made from. `paths` and `precisions` are the student's; the first path is the full one."""

    workload: Workload
    effort: Effort
    paths: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class Step:
    """One task of a case. `label` tells variations apart; a warm-up's answer is not recorded."""

    task: Task
    label: str = ""
    is_warm_up: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class Case:
    """`is_once`: in the first round only, for what does not vary or takes long."""

    title: str
    roles: frozenset[Role]
    steps: Callable[[Plan, Role], Iterator[Step]]
    is_once: bool = False


def _generate(
    plan: Plan, *, count: int, prompt_tokens: int, num_tokens: int, repeats: int, path: str | None = None
) -> Iterator[Step]:
    warm_up = Generate(prompts=plan.workload.windows(count, prompt_tokens), num_tokens=min(num_tokens, 8), path=path)
    yield Step(task=warm_up, is_warm_up=True)
    for _ in range(repeats):
        prompts = plan.workload.windows(count, prompt_tokens)
        yield Step(task=Generate(prompts=prompts, num_tokens=num_tokens, path=path), label=path or "")


def _decode_1(plan: Plan, role: Role) -> Iterator[Step]:
    effort = plan.effort
    return _generate(
        plan,
        count=1,
        prompt_tokens=PROMPT_TOKENS,
        num_tokens=effort.decode_tokens,
        repeats=effort.stream_repeats,
    )


def _job(count: int) -> Callable[[Plan, Role], Iterator[Step]]:
    def steps(plan: Plan, role: Role) -> Iterator[Step]:
        effort = plan.effort
        return _generate(
            plan,
            count=count,
            prompt_tokens=PROMPT_TOKENS,
            num_tokens=effort.decode_tokens,
            repeats=effort.job_repeats,
        )

    return steps


def _prefill(plan: Plan, role: Role) -> Iterator[Step]:
    return _generate(plan, count=1, prompt_tokens=PREFILL_TOKENS, num_tokens=1, repeats=plan.effort.prefill_repeats)


def _paths(count: int) -> Callable[[Plan, Role], Iterator[Step]]:
    def steps(plan: Plan, role: Role) -> Iterator[Step]:
        for path in plan.paths:
            yield from _generate(
                plan,
                count=count,
                prompt_tokens=PROMPT_TOKENS,
                num_tokens=plan.effort.decode_tokens,
                repeats=1,
                path=path,
            )

    return steps


def _mixed_step(plan: Plan, role: Role) -> Iterator[Step]:
    prompt = plan.workload.window(MIXED_PROMPT_TOKENS)
    yield Step(task=MixedStep(prompt=prompt, num_rows=MIXED_ROWS, repeats=plan.effort.step_repeats))


def _stall(plan: Plan, role: Role) -> Iterator[Step]:
    for is_warm_up in (True, False):
        prompt, intruder = plan.workload.window(PROMPT_TOKENS), plan.workload.window(INTRUDER_TOKENS)
        task = Stall(prompt=prompt, intruder=intruder, num_quiet_tokens=64)
        yield Step(task=task, is_warm_up=is_warm_up)


def _start_up(plan: Plan, role: Role) -> Iterator[Step]:
    yield Step(task=StartUp(prompt=plan.workload.window(PROMPT_TOKENS)))


def _memory(plan: Plan, role: Role) -> Iterator[Step]:
    prompts = plan.workload.windows(NUM_SEQUENCES, SLOT_TOKENS - PROMPT_TOKENS)
    yield Step(task=Occupy(prompts=prompts, num_tokens=SLOT_TOKENS))


def _cross_entropy(plan: Plan, role: Role) -> Iterator[Step]:
    texts = shorten(plan.workload.texts, plan.effort.score_tokens)
    if role is Role.PEER:
        yield Step(task=Score(texts=texts))
        return
    yield Step(task=Score(texts=texts), label="served")
    yield Step(task=Score(texts=shorten(texts, plan.effort.one_row_tokens), num_rows=1), label="served, 1 row")
    for precision in plan.precisions:
        yield Step(task=Score(texts=texts, precision=precision), label=precision)


ENGINES = frozenset({Role.PEER, Role.FENHE})
OURS = frozenset({Role.FENHE})
SERVED = frozenset({Role.SERVE})

CASES = {
    "decode_1": Case(title="one stream, decoding (tokens/s)", roles=ENGINES, steps=_decode_1),
    "decode_8": Case(title="8 sequences at once, whole job (tokens/s)", roles=ENGINES, steps=_job(FEW_SEQUENCES)),
    "decode_32": Case(title="32 sequences at once, whole job (tokens/s)", roles=ENGINES, steps=_job(NUM_SEQUENCES)),
    "prefill_512": Case(title="512-token prompt to first token (tokens/s)", roles=ENGINES, steps=_prefill),
    "paths_1": Case(title="one stream per path (tokens/s)", roles=OURS, steps=_paths(1)),
    "paths_32": Case(title="32 sequences per path (tokens/s)", roles=OURS, steps=_paths(NUM_SEQUENCES)),
    "http_32": Case(
        title="32 streaming clients over HTTP, and the same job in process (tokens/s)",
        roles=OURS | SERVED,
        steps=_job(NUM_SEQUENCES),
    ),
    "stall": Case(
        title="worst gap of a running stream, quiet and while a 2,000-token prompt arrives (ms)",
        roles=OURS,
        steps=_stall,
    ),
    "mixed_step": Case(title="a step of 30 rows on every depth (ms)", roles=OURS, steps=_mixed_step),
    "start_up": Case(title="process start to first token, and to all loaded (s)", roles=SERVED, steps=_start_up),
    "memory": Case(title="server memory at 32 slots of 1,024 tokens (MiB)", roles=SERVED, steps=_memory, is_once=True),
    "cross_entropy": Case(
        title="cross-entropy on held-out text (nats per token; lower is better)",
        roles=ENGINES,
        steps=_cross_entropy,
        is_once=True,
    ),
}
