"""What vLLM is told of a student: how far and how wide each path runs, in the `fenhe` part of `config.json`.

Written where the student is opened, read in every process of vLLM. Imports nothing of vLLM.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec

from models.errors import ConfigError
from models.graphs.widths import LayerWidths
from models.student.manifest import Manifest, Record, StudentPath
from models.student.stored_weights import StoredHead

CONFIG_KEY = "fenhe"
PATH_ARGUMENT = "fenhe_path"
"""The name under which a request's `extra_args` have its path."""
HEAD_ARGUMENT = "fenhe_head"
"""The same for its head, `cheap` or `exact`."""

ARCHITECTURES = {
    "llama": "FenheLlamaForCausalLM",
    "qwen2": "FenheQwen2ForCausalLM",
    "qwen3": "FenheQwen3ForCausalLM",
    "mistral": "FenheMistralForCausalLM",
}


class PathForm(Record, frozen=True, kw_only=True):
    """The first `num_layers` layers, at the width of this rank: 0 is the whole one, then widest first."""

    num_layers: int
    width: int = 0


class WidthForm(Record, frozen=True, kw_only=True):
    """How many neurons of each layer a width has, and whether it has an output matrix in attention of its own."""

    neurons: tuple[int, ...]
    has_own_output: bool


class HeadForm(Record, frozen=True, kw_only=True):
    """A cheap head: see `models.graphs.cheap_head.Candidates`."""

    rank: int
    num_candidates: int
    reach: float
    frequent: tuple[int, ...]


class ServedForm(Record, frozen=True, kw_only=True):
    """A student as vLLM runs it; a request that names no path takes `default_path`."""

    default_path: str
    paths: dict[str, PathForm]
    widths: tuple[WidthForm, ...] = ()
    head: HeadForm | None = None

    def path_of(self, arguments: Mapping[str, Any] | None) -> PathForm:
        """The path that a request's `extra_args` name. Raises: KeyError for one that is not there."""
        return self.paths[(arguments or {}).get(PATH_ARGUMENT, self.default_path)]

    def layer_widths(self, layer: int, num_neurons: int) -> LayerWidths:
        """The widths of a layer of `num_neurons`, in its own order."""
        import numpy as np

        return LayerWidths(
            neurons=(num_neurons, *(width.neurons[layer] for width in self.widths)),
            has_own_output=(False, *(width.has_own_output for width in self.widths)),
            order=np.arange(num_neurons),
        )


def served_form(manifest: Manifest, head: HeadForm | None = None) -> ServedForm:
    """Raises: ConfigError that names every path of a form that the vLLM engine does not run."""
    problems = [problem for path in manifest.paths for problem in _problems(manifest, path)]
    if problems:
        raise ConfigError(*problems)
    return ServedForm(
        default_path=manifest.full_path.name,
        paths={
            path.name: PathForm(num_layers=manifest.num_layers_on(path), width=manifest.width_rank(path.width))
            for path in manifest.paths
        },
        widths=tuple(
            WidthForm(neurons=width.neurons, has_own_output=width.has_own_output) for width in manifest.widths
        ),
        head=head,
    )


def _problems(manifest: Manifest, path: StudentPath) -> list[str]:
    exit = manifest.exit(path.exit)
    problems = []
    if exit.num_blocks:
        problems.append(f"its exit {exit.name!r} has layers of its own")
    if exit.has_map:
        problems.append(f"its exit {exit.name!r} has a linear map")
    modules = [manifest.module(name) for name in path.modules]
    ends = [(one.first_layer + one.num_layers, other.first_layer) for one, other in pairwise(modules)]
    if modules[0].first_layer or any(end != start for end, start in ends):
        problems.append("it leaves layers out before its last one")
    return [
        f"the vLLM engine cannot run path {path.name!r} of student {manifest.name!r}: {problem}; serve this student "
        'with `engine = "onnx"`'
        for problem in problems
    ]


def head_form(head: StoredHead, rank: int) -> HeadForm:
    candidates = head.candidates
    return HeadForm(
        rank=rank,
        num_candidates=candidates.num_candidates,
        reach=candidates.reach,
        frequent=tuple(candidates.frequent),
    )


def form_in(config: Any) -> ServedForm:
    """The form in a Hugging Face configuration. Raises: ConfigError for one without."""
    found = getattr(config, CONFIG_KEY, None)
    if found is None:
        raise ConfigError(f"config.json has no {CONFIG_KEY!r}: export the student with `fenhe export --format vllm`")
    return msgspec.convert(found, ServedForm)
