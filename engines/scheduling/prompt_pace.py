"""How many prompt tokens a step computes: a fixed number while nothing else runs, and beside streams as many as fit
into a bounded time, because a stream pauses for as long as the step takes.

How long a token takes is learned from the steps themselves, so that the bound holds on any machine and for a model of
any size. A prompt gives the same KV, to the bit, however it is cut: what is learned changes no answer.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass

from engines.scheduling.step_plan import Chunk, StepPlan
from engines.sequence import Sequence, mean_with

PROMPTS_SHARE = 0.8
"""Prompts beside streams have at least this share of a step's time. Else they would hardly get on where a pass of the
streams alone takes most of the bound."""
QUIET_STEPS = 10
"""While no stream runs, a step may take as long as this many beside streams; a request that arrives waits for it."""
ATTENTION_PER_CHANNEL = 2.2
"""Behind as many tokens as this times the hidden size, attending costs about as much as all else that a token needs:
1.5 with AVX-512, 2.2 where attention multiplies bf16, 3 with AVX2. It only carries what one step taught to the next."""
TELLING_TOKENS = 16
"""A step with fewer prompt tokens counts less in what is learned: their time is a small difference of two long ones."""
OTHERS_SHARE = 16
"""Beside others' streams a step computes one prompt token where it would compute this many beside the tenant's own."""
OTHERS_PASS_SHARE = 0.5
"""If more take no longer than this share of the streams' own pass, it computes those: where many rows run, a few
tokens at a time would keep a prompt waiting for long, and save the others little."""
STEPS_IN_A_ROW = 8
"""After this many steps with prompts beside streams, one leaves the prompts out, to measure the streams' own pass. As
prompts end there are more streams, and what those take would otherwise be taken for the prompts' cost."""
TIMES_LONGER = 4
"""A pass of the streams counts as at most this many times their mean: a longer one was interrupted, or the next ones
are as long and raise the mean."""
LEAST_CHUNK = 4
"""However little time there is, and however many tenants have prompts: smaller chunks cost more than they save."""

ROUNDING = 1e-6
"""Keeps a whole number of tokens from being rounded down to the one below it."""


class PromptPace:
    """Owned by the engine's thread. A step computes at most `step_tokens` prompt tokens while no stream runs; beside
    streams at most `busy_step_tokens`, which together with the streams' own take about `busy_step_s` seconds at most
    (ten times that while none runs), or any time if that is None.
    """

    def __init__(self, *, step_tokens: int, busy_step_tokens: int, busy_step_s: float | None, hidden_size: int) -> None:
        self._step_tokens = step_tokens
        self.busy_step_tokens = busy_step_tokens
        self._busy_step_s = busy_step_s
        self._attention_tokens = ATTENTION_PER_CHANNEL * hidden_size
        self._pass_s: float | None = None
        """Of the streams alone."""
        self._unit_s: float | None = None
        """A unit is a prompt token at the start of its text; later ones are more."""
        self._num_in_a_row = 0

    def note_pass(self, plan: StepPlan, seconds: float) -> None:
        """The forward pass of `plan` took so long."""
        if not plan.chunks:
            longest_s = seconds if self._pass_s is None else TIMES_LONGER * self._pass_s
            self._pass_s = mean_with(self._pass_s, min(seconds, longest_s))
            self._num_in_a_row = 0
            return
        self._num_in_a_row += any(plan.decode)
        units = sum(self.units(chunk.sequence, chunk.num_tokens) for chunk in plan.chunks)
        streams_s = (self._pass_s or 0.0) if any(plan.decode) else 0.0
        newest = max(seconds - streams_s, 0.0) / units
        if self._unit_s is not None:
            newest = self._unit_s + (newest - self._unit_s) * min(units / TELLING_TOKENS, 1.0)
        self._unit_s = mean_with(self._unit_s, newest)

    def room(self, prompts: Many[Sequence], streaming: frozenset[str]) -> "PromptRoom":
        """For the next step, in which `prompts` are due beside streams of the tenants `streaming`."""
        tenants = {one.tenant for one in prompts}
        if streaming and self._busy_step_s is not None and self._num_in_a_row >= STEPS_IN_A_ROW:
            return PromptRoom(self, 0, dict.fromkeys(tenants, 0))
        num_tokens = self.busy_step_tokens if streaming else self._step_tokens
        by_tenant = dict.fromkeys(tenants, num_tokens)
        for prompt in reversed(prompts):  # so that each tenant's first one has the last word
            if streaming - {prompt.tenant}:
                by_tenant[prompt.tenant] = self._part_beside_others(prompt, len(tenants))
        units = self._units_of_step(is_busy=bool(streaming))
        if units is not None and prompts:
            units = max(units, *(self.units(prompt, LEAST_CHUNK) for prompt in prompts))
        return PromptRoom(self, num_tokens, by_tenant, units)

    def _part_beside_others(self, sequence: Sequence, num_tenants: int) -> int:
        """Tokens of one of so many tenants with prompts; its next prompt is this one."""
        num_tokens = self.busy_step_tokens // OTHERS_SHARE
        if self._unit_s and self._pass_s:
            num_tokens = max(num_tokens, self.num_tokens(sequence, OTHERS_PASS_SHARE * self._pass_s / self._unit_s))
        return max(min(num_tokens, self.busy_step_tokens) // num_tenants, LEAST_CHUNK)

    def _units_of_step(self, *, is_busy: bool) -> float | None:
        """That fit into a step, beside streams or without any; None: any number, or nothing is known yet."""
        if self._busy_step_s is None or not self._unit_s:
            return None
        if not is_busy:
            return QUIET_STEPS * self._busy_step_s / self._unit_s
        streams_s = self._pass_s or 0.0
        return max(self._busy_step_s - streams_s, streams_s * PROMPTS_SHARE / (1 - PROMPTS_SHARE)) / self._unit_s

    def units(self, sequence: Sequence, num_tokens: int) -> float:
        """Of the next tokens of a prompt: each counts with the tokens before it."""
        return num_tokens * (1 + (sequence.num_computed_tokens + num_tokens / 2) / self._attention_tokens)

    def num_tokens(self, sequence: Sequence, units: float) -> int:
        """How many of a prompt's next tokens have so many units: `units` solved for them."""
        first = 1 + sequence.num_computed_tokens / self._attention_tokens
        root = (first**2 + 2 * max(units, 0.0) / self._attention_tokens) ** 0.5
        return int(self._attention_tokens * (root - first) + ROUNDING)


@dataclass(slots=True)
class PromptRoom:
    """How many prompt tokens a step may still compute: of all tenants together, of each, and by what they cost."""

    _pace: PromptPace
    _num_tokens: int
    _by_tenant: dict[str, int]
    _units: float | None = None

    def of(self, sequence: Sequence) -> int:
        num_tokens = min(self._num_tokens, self._by_tenant[sequence.tenant])
        if self._units is None:
            return num_tokens
        return min(num_tokens, self._pace.num_tokens(sequence, self._units))

    def take(self, chunk: Chunk) -> None:
        self._num_tokens -= chunk.num_tokens
        self._by_tenant[chunk.sequence.tenant] -= chunk.num_tokens
        if self._units is not None:
            self._units -= self._pace.units(chunk.sequence, chunk.num_tokens)
