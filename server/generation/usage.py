"""What an answer took: its tokens, and its compute beside that of the full path with the exact head.

Definitions of compute: in multiply-adds. Every token counts once, with the layers of its path; answer tokens with the
head too, and with both heads where the exact one ran beside the cheap one. So do the tokens of a prompt that is scored,
which is done with the exact head. Prompt tokens whose KV came from the prefix cache cost nothing, on either side.
Attention is left out, and so is what a preempted sequence computes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engines.sequence import Finish
from models.evaluation.compute import compute_share, head_multiply_adds, request_multiply_adds
from models.student.manifest import HeadKind, Manifest, StudentPath
from server.generation.plan import Job, Part, Plan
from server.wire.base import PromptTokensDetails, UsageFenhe, UsageReply, UsageSoFar


@dataclass(slots=True, kw_only=True, frozen=True)
class Compute:
    """Multiply-adds that were spent, and those of the full path with the exact head for the same tokens."""

    spent: int = 0
    full: int = 0

    def __add__(self, other: "Compute") -> "Compute":
        return Compute(spent=self.spent + other.spent, full=self.full + other.full)

    @property
    def share(self) -> float:
        return self.spent / self.full if self.full else 0.0


class RunningUsage:
    """How many tokens the choices of a stream have so far."""

    def __init__(self, job: Job) -> None:
        self._num_prompt = [request.num_prompt_tokens for request in job.requests]
        self._num_answer = [0] * len(job.requests)

    def add(self, part: Part) -> None:
        """Count a part; at its end a choice has all its tokens, also one that was not shown."""
        num_tokens = self._num_answer[part.index] + part.num_tokens
        self._num_answer[part.index] = num_tokens if part.finish is None else part.finish.usage.num_completion_tokens

    def of(self, index: int) -> UsageSoFar:
        prompt, answer = self._num_prompt[index], self._num_answer[index]
        return UsageSoFar(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


def token_share(plan: Plan, path: str) -> float:
    """What one answer token costs on `path`, over what it costs on the full path with the exact head."""
    manifest = plan.student.manifest
    return compute_share(manifest, manifest.path(path), head=_head_of(plan))


def total_usage(plan: Plan, finishes: Sequence[Finish]) -> UsageReply:
    """Sum over choices; a prompt counts once in the tokens, however many choices it has."""
    usages, n = [finish.usage for finish in finishes], plan.job.n
    prompt_tokens = sum(usage.num_prompt_tokens for usage in usages[::n])
    completion_tokens = sum(usage.num_completion_tokens for usage in usages)
    compute = compute_of(plan, finishes)
    return UsageReply(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(usage.num_cached_tokens for usage in usages[::n])),
        fenhe=UsageFenhe(
            compute_share=round(compute.share, 4), multiply_adds=compute.spent, full_multiply_adds=compute.full
        ),
    )


def compute_of(plan: Plan, finishes: Sequence[Finish]) -> Compute:
    """What all choices together took."""
    is_scored = plan.job.requests[0].sampling.prompt_logprobs is not None
    manifest, head = plan.student.manifest, _head_of(plan)
    return sum((_of_sequence(manifest, head, finish, is_scored) for finish in finishes), start=Compute())


def _head_of(plan: Plan) -> HeadKind:
    """The head that chooses the answer's tokens."""
    return plan.target.head


def _of_sequence(manifest: Manifest, head: HeadKind, finish: Finish, is_scored: bool) -> Compute:
    usage, path = finish.usage, manifest.path(finish.path)
    num_computed = max(0, usage.num_prompt_tokens - usage.num_cached_tokens)
    num_scored = max(0, num_computed - 1) if is_scored else 0
    num_plain, num_answer = num_computed - num_scored, usage.num_completion_tokens

    def cost(path: StudentPath, head: HeadKind, num_prompt_tokens: int, num_answer_tokens: int) -> int:
        return request_multiply_adds(
            manifest, path, head, num_prompt_tokens=num_prompt_tokens, num_answer_tokens=num_answer_tokens
        )

    return Compute(
        spent=cost(path, head, num_plain, num_answer)
        + cost(path, "exact", 0, num_scored)
        + usage.num_exact_rows * head_multiply_adds(manifest),
        full=cost(manifest.full_path, "exact", num_plain, num_answer + num_scored),
    )
