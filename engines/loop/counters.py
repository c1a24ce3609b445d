"""Counts what an engine has done since it started, for metrics."""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from engines.scheduling.step_plan import StepPlan
from engines.sequence import Sequence
from models.student.folder import HEAD, HEAD_STAGES
from models.student.manifest import Manifest


@dataclass(slots=True, kw_only=True)
class Counters:
    """Written by the engine thread only; any thread may read them."""

    stage_runs: Counter[str] = field(default_factory=Counter)
    stage_rows: Counter[str] = field(default_factory=Counter)
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    num_background_tokens: int = 0
    busy_s: float = 0.0
    background_s: float = 0.0

    def count_prompt(self, sequence: Sequence) -> None:
        """A prompt has been computed."""
        self.num_prompt_tokens += 0 if sequence.in_background else sequence.num_prompt_tokens

    def count_time(self, plan: StepPlan, pass_s: float, rest_s: float) -> None:
        """A step took so long: its forward pass and sampling, and what came behind that, scoring mostly."""
        self.busy_s += pass_s + rest_s
        num_background = plan.num_background_tokens
        if num_background:
            scores = any(chunk.sequence.in_background for chunk in plan.chunks)
            self.background_s += pass_s * num_background / plan.num_tokens + (rest_s if scores else 0.0)

    def count(
        self, plan: StepPlan, manifest: Manifest, kv_stages: Mapping[str, Many[str]], num_exact_rows: int
    ) -> None:
        """Count stage runs and rows of a step about to be committed.

        `kv_stages` are each path's stages with KV, `num_exact_rows` the rows of the cheap head that the exact one
        computed too.
        """
        self.num_steps += 1
        self.num_background_tokens += plan.num_background_tokens
        decoded = [sequence for sequence in plan.decode if sequence is not None and not sequence.in_background]
        stages = Counter(HEAD_STAGES[sequence.head] for sequence in decoded)
        stages[HEAD] += num_exact_rows
        for path, num_rows in Counter(sequence.path for sequence in decoded).items():
            for stage in manifest.stages(manifest.path(path)):
                stages[stage] += num_rows
        for chunk in (chunk for chunk in plan.chunks if not chunk.sequence.in_background):
            for stage in manifest.stages(manifest.path(chunk.sequence.path)):
                # An exit without layers runs on a prompt's last token only, like the head, unless it is scored.
                has_kv = stage in kv_stages[chunk.sequence.path]
                stages[stage] += chunk.num_tokens if has_kv or chunk.unscored else chunk.is_last
            stages[HEAD] += len(chunk.unscored)
            stages[HEAD_STAGES[chunk.sequence.head]] += chunk.is_last
        stages = +stages
        self.stage_rows.update(stages)
        self.stage_runs.update(stages.keys())
