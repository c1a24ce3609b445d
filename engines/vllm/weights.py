"""Puts a student's tensors where its model has them: its own parts here, everything else where vLLM puts it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from engines.vllm.form import ServedForm
from engines.vllm.layers import WidthFeedForward, WidthOutput
from engines.vllm.matrices import WidthMatrices
from models.errors import WeightsError
from models.graphs.cheap_head import HEAD_BIAS, HEAD_PREVIEW
from models.graphs.rotate import HEAD_PROJECT

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_GATE_UP = {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 1}
_OWN = re.compile(r"(mlp|self_attn)\.widths\.(\d+)\.(down|o)_proj\.weight")
_HEAD = {HEAD_PROJECT: "project", HEAD_PREVIEW: "preview", HEAD_BIAS: "preview_bias"}


class StudentParameters:
    """The parameters of a model that vLLM does not know. Names of tensors are those of `StoredWeights`."""

    def __init__(self, model: Any, form: ServedForm) -> None:
        self._model = model
        self._form = form
        self._wanted = {
            name for name, module in _own_modules(model) for name in _parameters(name, module)
        }  # full names of own parameters
        self._loaded: set[str] = set()
        self._held: dict[WidthMatrices, dict[int, Tensor]] = {}  # until a layer's are complete

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Those that are not ours, one after the other; ours are put in their place."""
        for name, tensor in weights:
            if not self._put(name, tensor):
                yield name, tensor

    def finish(self) -> set[str]:
        """The names of what was put. Raises: WeightsError that names what is missing."""
        missing = sorted(self._wanted - self._loaded)
        if missing:
            raise WeightsError(f"the student's weights lack {', '.join(missing[:8])}; export the student again")
        for module in self._model.modules():
            if isinstance(module, WidthMatrices):
                module.forget_unused()
        return self._loaded

    def _put(self, name: str, tensor: Tensor) -> bool:
        if name in _HEAD:
            return self._put_head(_HEAD[name], tensor)
        found = _LAYER.fullmatch(name)
        if found is None or not self._form.widths:
            return False
        return self._put_in_layer(int(found[1]), found[2], tensor)

    def _put_head(self, name: str, tensor: Tensor) -> bool:
        head = self._model.cheap_head
        if head is not None:
            getattr(head, name).data.copy_(tensor)
            self._loaded.add(f"cheap_head.{name}")
        return True  # a model that serves without its cheap head has no use for them

    def _put_in_layer(self, layer: int, part: str, tensor: Tensor) -> bool:
        place = self._model.model.layers[layer]
        own = _OWN.fullmatch(part)
        if part in _GATE_UP:
            self._put_neurons(layer, place.mlp, _GATE_UP[part], tensor)
        elif part == "mlp.down_proj.weight" or (own is not None and own[1] == "mlp"):
            entry = 0 if own is None else int(own[2])
            self._put_matrix(f"model.layers.{layer}.mlp.downs", place.mlp.downs, entry, tensor)
        elif not isinstance(place.self_attn.o_proj, WidthOutput):
            return False
        elif own is not None or part.startswith("self_attn.o_proj."):
            entry = 0 if own is None else int(own[2])
            self._put_output(layer, place.self_attn.o_proj, entry, part, tensor)
        else:
            return False
        return True

    def _put_neurons(self, layer: int, place: WidthFeedForward, half: int, tensor: Tensor) -> None:
        if place.whole is not None:
            first = half * len(tensor)
            place.whole.weight.data[first : first + len(tensor)].copy_(tensor)
            self._loaded.add(f"model.layers.{layer}.mlp.whole.weight")
        for index, block in enumerate(place.blocks):
            target: Any = place.gate_ups[index]
            first = half * block.size
            target.weight.data[first : first + block.size].copy_(tensor[block.first : block.end])
            self._loaded.add(f"model.layers.{layer}.mlp.gate_ups.{index}.weight")

    def _put_output(self, layer: int, place: WidthOutput, entry: int, part: str, tensor: Tensor) -> None:
        name, outputs = f"model.layers.{layer}.self_attn.o_proj.outputs", place.outputs
        if part.endswith(".bias"):  # the model's belongs to the matrix of every width
            for index, linear in enumerate(outputs.linears):
                self._fill(f"{name}.linears.{index}.bias", linear.bias, tensor)
        else:
            self._put_matrix(name, outputs, outputs.of_entry[entry], tensor)

    def _put_matrix(self, name: str, place: WidthMatrices, index: int, tensor: Tensor) -> None:
        self._fill(f"{name}.linears.{index}.weight", place.linears[index].weight, tensor)
        held = self._held.setdefault(place, {})
        held[index] = tensor
        if len(held) == len(place.linears):
            place.compare([held[one] for one in range(len(held))])
            del self._held[place]

    def _fill(self, name: str, target: Any, tensor: Tensor) -> None:
        target.data.copy_(tensor)
        self._loaded.add(name)


def _own_modules(model: Any) -> Iterator[tuple[str, Any]]:
    for index, layer in enumerate(model.model.layers):
        for part, module in (("mlp", layer.mlp), ("self_attn.o_proj", layer.self_attn.o_proj)):
            if isinstance(module, WidthFeedForward | WidthOutput):
                yield f"model.layers.{index}.{part}", module
    if model.cheap_head is not None:
        yield "cheap_head", model.cheap_head


def _parameters(prefix: str, module: Any) -> list[str]:
    return [f"{prefix}.{name}" for name, _ in module.named_parameters()]
