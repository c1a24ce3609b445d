"""vLLM's worker and runner on the CPU (its V1 runner): tells the model which rows of a step run what, and counts it."""

from collections import Counter, deque
from typing import Any

import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from engines.vllm.form import HEAD_ARGUMENT, PathForm
from engines.vllm.plugin import register
from engines.vllm.rows import StepRows

LOG_STEPS = 4096


class PathModelRunner(CPUModelRunner):
    """Puts a step's rows in the order of their widths, and gives the model its `StepRows`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.step_log: deque[dict[str, Any]] = deque(maxlen=LOG_STEPS)
        self.counts: Counter[str] = Counter()
        self._scheduled: dict[str, int] = {}

    def load_model(self, *arguments: Any, **options: Any) -> None:
        super().load_model(*arguments, **options)
        compute = self.sampler.compute_logprobs

        def exact_logprobs(logits: torch.Tensor) -> torch.Tensor:
            """Log-probabilities are the exact head's, whichever chose."""
            exact, self.model.exact_logits = self.model.exact_logits, None
            logprobs: torch.Tensor = compute(logits if exact is None or exact.shape != logits.shape else exact)
            return logprobs

        self.sampler.compute_logprobs = exact_logprobs

    def warming_up_model(self) -> None:
        """Compile what plain steps run, then what others do."""
        super().warming_up_model()
        if num_layers := self.model.trunk.num_layers:
            form = self.model.form
            path = PathForm(num_layers=num_layers, width=len(form.widths))
            self.model.set_step(StepRows.of([path], [self.max_num_tokens], len(form.widths)), self.device)
            try:
                super().warming_up_model()
            finally:
                self.model.set_step(None, self.device)

    def execute_model(self, scheduler_output: Any, *arguments: Any, **options: Any) -> Any:
        self._scheduled = scheduler_output.num_scheduled_tokens
        try:
            return super().execute_model(scheduler_output, *arguments, **options)
        finally:
            self.model.end_heads()

    def _may_reorder_batch(self, scheduler_output: Any) -> None:
        """Widest first: what a block of neurons runs on is then a range, and nothing is gathered."""
        super()._may_reorder_batch(scheduler_output)
        if self.reorder_batch_threshold is not None:
            return
        widths = [self._path_of(id).width for id in self.input_batch.req_ids]
        if widths == sorted(widths):
            return
        for place in range(len(widths)):  # few rows are out of place from one step to the next
            best = min(range(place, len(widths)), key=widths.__getitem__)
            if widths[best] < widths[place]:
                self.input_batch.swap_states(place, best)
                widths[place], widths[best] = widths[best], widths[place]

    def _model_forward(self, *arguments: Any, **options: Any) -> Any:
        ids = list(self.input_batch.req_ids)
        rows = StepRows.of(
            [self._path_of(id) for id in ids], [self._scheduled[id] for id in ids], len(self.model.form.widths)
        )
        self.model.set_step(rows, self.device)
        cheap = self._set_heads(ids)
        self._note(rows, len(ids), cheap)
        try:
            return super()._model_forward(*arguments, **options)
        finally:
            self.model.set_step(None, self.device)

    def _set_heads(self, ids: list[str]) -> int:
        """Tell the model which of the step's logits take the cheap head; returns how many do."""
        if self.model.cheap_head is None:
            return 0
        params = [self.requests[id].sampling_params for id in ids]
        cheap = [(one.extra_args or {}).get(HEAD_ARGUMENT) == "cheap" for one in params]
        if not any(cheap):
            self.model.set_heads(None)
            return 0
        wants_exact = any(one.logprobs is not None for one, is_cheap in zip(params, cheap, strict=True) if is_cheap)
        self.model.set_heads(torch.tensor(cheap), wants_exact=wants_exact)
        return sum(cheap)

    def _path_of(self, id: str) -> PathForm:
        """Kept where vLLM keeps the request itself: an id may come again, for another path."""
        request = self.requests[id]
        path: PathForm | None = getattr(request, "fenhe_path", None)
        if path is None:
            path = request.fenhe_path = self.model.form.path_of(request.sampling_params.extra_args)
        return path

    def _note(self, rows: StepRows, num_logits: int, num_cheap: int) -> None:
        self.step_log.append(
            {"num_layers": rows.num_layers, "counts": rows.counts, "sorted": rows.order is None, "cheap": num_cheap}
        )
        self.counts["steps"] += 1
        self.counts[f"layers:{rows.num_layers}"] += 1
        self.counts[f"tokens:{rows.num_layers}"] += rows.counts[-1]
        self.counts["head:rows"] += num_logits - num_cheap
        self.counts["head:runs"] += num_cheap < num_logits
        self.counts["cheap_head:rows"] += num_cheap
        self.counts["cheap_head:runs"] += num_cheap > 0


class PathWorker(CPUWorker):
    """`worker_cls` on the CPU."""

    def init_device(self) -> None:
        register()
        super().init_device()
        if self.use_v2_model_runner:
            raise RuntimeError("fenhe's paths run on vLLM's V1 runner here; set VLLM_USE_V2_MODEL_RUNNER=0")
        self.model_runner = PathModelRunner(self.vllm_config, torch.device("cpu"))

    def fenhe_counts(self) -> dict[str, int]:
        """What the model ran since it was loaded."""
        return dict(self.model_runner.counts)

    def fenhe_steps(self) -> list[dict[str, Any]]:
        """The newest steps: how many layers, how many tokens at each width, how many rows of the cheap head."""
        return list(self.model_runner.step_log)
