"""What vLLM's V2 runner (the one of GPUs) asks a model for: the state that tells it which rows of a step run what.

Unproven: written to the design that `cpu.py` shows to work, without a GPU that has vLLM at hand.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from engines.vllm.form import HEAD_ARGUMENT, PathForm
from engines.vllm.rows import StepRows


class PathModelState(DefaultModelState):
    """Keeps each request's path and head by its slot. The V2 runner does not sort its rows: the model gathers them."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._paths: dict[int, PathForm] = {}
        self._cheap: dict[int, bool] = {}

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        arguments = new_req_data.sampling_params.extra_args
        self._paths[req_index] = self.model.form.path_of(arguments)
        self._cheap[req_index] = (arguments or {}).get(HEAD_ARGUMENT) == "cheap"

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        slots = input_batch.idx_mapping_np.tolist()
        counts = input_batch.num_scheduled_tokens.tolist()
        rows = StepRows.of([self._paths[slot] for slot in slots], counts, len(self.model.form.widths))
        self.model.set_step(rows, self.device)
        cheap = [self._cheap[slot] for slot in slots]
        self.model.set_heads(torch.tensor(cheap, device=self.device) if any(cheap) else None)
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs

    def prepare_dummy_inputs(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self.model.set_step(None, self.device)
        self.model.set_heads(None)
        inputs: dict[str, Any] = super().prepare_dummy_inputs(*arguments, **options)
        return inputs
