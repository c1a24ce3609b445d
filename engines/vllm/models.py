"""Our students as models of vLLM: its own Llama, Qwen2, Qwen3 and Mistral, with the parts that paths need put in.

A step in which every row runs everything is vLLM's own model, compiled where vLLM compiles; any other runs the layers
of `trunk.py`, as far as its rows go.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.platforms import current_platform

from engines.vllm.form import ServedForm, form_in
from engines.vllm.layers import CheapHead, Step, WidthFeedForward, WidthOutput
from engines.vllm.rows import StepRows
from engines.vllm.trunk import Trunk
from engines.vllm.weights import StudentParameters
from models.errors import ConfigError


class PathsMixin:
    """What a model of vLLM's becomes by having paths. `step` says what the next pass runs, `heads` which of its rows
    of logits take the cheap head."""

    form: ServedForm
    step: Step
    trunk: Trunk
    cheap_head: CheapHead | None
    exact_logits: Tensor | None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **options: Any) -> None:
        parent: Any = super()
        parent.__init__(vllm_config=vllm_config, prefix=prefix, **options)
        config = vllm_config.model_config.hf_config
        self.form = form_in(config)
        _check_parallel(self.form, vllm_config)
        model: Any = self
        self.step = Step(len(model.model.layers))
        self._cheap_rows: Tensor | None = None
        self._wants_exact = False
        self.exact_logits = None
        if self.form.widths:
            places = vllm_config.compilation_config.static_forward_context
            for index, layer in enumerate(model.model.layers):
                _put_widths_in(layer, self.form, index, config, self.step, places)
        self.trunk = Trunk(model.model, self.form, vllm_config)
        self.cheap_head = None
        if self.form.head is not None:
            self.cheap_head = CheapHead(self.form.head, config.hidden_size, config.vocab_size)

    def set_step(self, rows: StepRows | None, device: torch.device) -> None:
        """What the next pass runs; None: everything, for every row."""
        self.step.set(rows, device)

    def set_heads(self, cheap_rows: Tensor | None, *, wants_exact: bool = False) -> None:
        """Which rows of the next logits take the cheap head, all others the exact one; None: none. With `wants_exact`
        the exact ones of all rows stand in `exact_logits` afterwards.

        Shapes: cheap_rows [R] bool.
        """
        self._cheap_rows, self._wants_exact, self.exact_logits = cheap_rows, wants_exact, None

    def end_heads(self) -> None:
        """The logits of the step are computed; what else is scored takes the exact head."""
        self._cheap_rows = None

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        model: Any = self
        rows = self.step.rows
        if rows is None or self.step.is_plain:
            parent: Any = super()
            return parent.forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        hidden = model.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.trunk(hidden, positions, rows.num_layers)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        cheap = self._cheap_rows
        parent: Any = super()
        model: Any = self
        logits: Tensor | None
        if cheap is None or self.cheap_head is None or len(cheap) != len(hidden_states):
            logits = parent.compute_logits(hidden_states)
        elif self._wants_exact or not bool(cheap.all()):
            whole: Tensor = parent.compute_logits(hidden_states)
            self.exact_logits = whole if self._wants_exact else None
            logits = whole.float().clone()
            logits[cheap] = self.cheap_head(hidden_states[cheap], model.lm_head.weight)
        else:
            logits = self.cheap_head(hidden_states, model.lm_head.weight)
        return logits

    def get_model_state_cls(self) -> Any:
        """What vLLM's V2 runner asks for the rows of a step."""
        from engines.vllm.gpu import PathModelState

        return PathModelState

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        model: Any = self
        parent: Any = super()
        own = StudentParameters(model, self.form)
        loaded = set(parent.load_weights(own.take(weights)) or ())
        return loaded | own.finish()


def _put_widths_in(layer: Any, form: ServedForm, index: int, config: Any, step: Step, places: dict[str, Any]) -> None:
    widths = form.layer_widths(index, config.intermediate_size)
    name = f"model.layers.{index}"
    keeps_whole = current_platform.is_cpu()
    layer.mlp = WidthFeedForward(config.hidden_size, widths, step, f"{name}.mlp", places, keeps_whole=keeps_whole)
    if len(widths.output_runs) > 1:
        before = layer.self_attn.o_proj
        layer.self_attn.o_proj = WidthOutput(
            before.input_size,
            before.output_size,
            widths,
            step,
            f"{name}.self_attn.o_proj",
            places,
            bias=before.bias is not None,
        )


def _check_parallel(form: ServedForm, vllm_config: VllmConfig) -> None:
    """Raises: ConfigError for what paths cannot be split over."""
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ConfigError("pipeline_parallel_size: a student's paths run on one stage; use tensor_parallel_size")
    if parallel.tensor_parallel_size > 1 and (form.widths or form.head):
        raise ConfigError(
            "tensor_parallel_size: widths and the cheap head run on one device; a student with depth alone can be split"
        )


class FenheLlamaForCausalLM(PathsMixin, LlamaForCausalLM):
    pass


class FenheMistralForCausalLM(PathsMixin, MistralForCausalLM):
    pass


class FenheQwen2ForCausalLM(PathsMixin, Qwen2ForCausalLM):
    pass


class FenheQwen3ForCausalLM(PathsMixin, Qwen3ForCausalLM):
    pass
