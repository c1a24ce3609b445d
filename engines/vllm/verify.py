"""`python -m engines.vllm.verify STUDENT`: every path by the vLLM that is here, each token compared with plain torch.

For machines whose device nobody has tried yet, such as one with a GPU. Prints what differs; exit status 1 if it does.
"""

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.config import EngineConfig
from engines.sequence import GenerationRequest, SamplingParams, SequenceEvent
from engines.vllm.build import build_vllm_engine
from models.graphs.widths import own_down, own_output
from models.reference import ReferenceDecoder
from models.sources.source import expected_shapes
from models.student.folder import Student
from models.student.manifest import StudentPath
from models.student.stored_weights import StoredWeights

NUM_PROMPTS = 8
NUM_TOKENS = 16
TIE = {"float32": 5e-3, "float16": 0.1, "bfloat16": 0.5}
"""Logits closer than this may be decided by rounding."""
PATIENCE_S = 900.0

Floats = npt.NDArray[np.float32]


class Answers:
    """What an engine publishes."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def publish(self, events: Sequence[SequenceEvent]) -> None:
        with self._changed:
            for event in events:
                self.tokens.setdefault(event.sequence_id, []).extend(event.token_ids)
                if event.finish is not None:
                    self._ended.add(event.sequence_id)
            self._changed.notify_all()

    def wait(self, ids: Sequence[str]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended >= set(ids), PATIENCE_S):
                raise TimeoutError(f"vLLM did not answer within {PATIENCE_S:g} s")


class WholeWeights(StoredWeights):
    """The student's weights as those of a model without widths; what a `ModelSource` says besides, nobody asks for."""

    name = "student"
    files = (Path("student"),)

    def tensor_names(self) -> frozenset[str]:
        return frozenset(expected_shapes(self.architecture))

    def shape(self, name: str) -> tuple[int, ...]:
        return expected_shapes(self.architecture)[name]


def narrow_tensors(student: Student, path: StudentPath) -> dict[str, Floats]:
    """The tensors in which a path's width differs from the whole one. Shapes: as its neurons are."""
    stored, rank = StoredWeights(student), student.manifest.width_rank(path.width)
    changed: dict[str, Floats] = {}
    if not rank:
        return changed
    own = stored.tensor_names()
    for layer in range(student.manifest.architecture.num_layers):
        prefix, neurons = f"model.layers.{layer}", student.manifest.neurons(path, layer)
        for part in ("gate_proj", "up_proj"):
            name = f"{prefix}.mlp.{part}.weight"
            changed[name] = stored.read(name)[:neurons]
        changed[f"{prefix}.mlp.down_proj.weight"] = stored.read(own_down(layer, rank))
        if own_output(layer, rank) in own:
            changed[f"{prefix}.self_attn.o_proj.weight"] = stored.read(own_output(layer, rank))
    return changed


def find_differences(student: Student, answers: Answers, prompts: Sequence[Sequence[int]], tie: float) -> list[str]:
    """A sentence for every answer that is not the reference's."""
    found = []
    for path in student.manifest.paths:
        whole: Any = WholeWeights(student)
        decoder = ReferenceDecoder(whole, narrow_tensors(student, path))
        num_layers = student.manifest.num_layers_on(path)
        for number, prompt in enumerate(prompts):
            answer = answers.tokens[f"{path.name} {number}"]
            hidden = decoder.layers(decoder.embed([*prompt, *answer]), 0, num_layers)
            logits = np.asarray(decoder.logits(hidden[len(prompt) - 1 : -1]))
            behind = logits.max(axis=1) - logits[np.arange(len(answer)), answer]
            if len(answer) != NUM_TOKENS or behind.max() > tie:
                found.append(f"path {path.name}, prompt {number}: {len(answer)} tokens, {behind.max():.4f} behind")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engines.vllm.verify", description=__doc__)
    parser.add_argument("student", type=Path, help="a student's folder, with fp32 weights")
    parser.add_argument("--dtype", choices=sorted(TIE), default="float32")
    parser.add_argument(
        "--compile", action="store_true", help="let vLLM compile and capture, as it does when it serves"
    )
    options = parser.parse_args(argv)
    student = Student.open(options.student)
    config = EngineConfig(max_context_tokens=256, head="exact", kv_bytes=512 << 20)
    vllm_options = {"dtype": options.dtype, "enforce_eager": not options.compile}
    engine, answers = build_vllm_engine(student, config, vllm_options), Answers()
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 250, random.integers(3, 60)).tolist() for _ in range(NUM_PROMPTS)]
    engine.start(answers.publish)
    try:
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        ids = [f"{path.name} {number}" for number in range(NUM_PROMPTS) for path in student.manifest.paths]
        for id in ids:
            path, _, number = id.rpartition(" ")
            prompt = tuple(prompts[int(number)])
            engine.submit(GenerationRequest(id=id, prompt_token_ids=prompt, path=path, sampling=sampling))
        answers.wait(ids)
    finally:
        engine.stop(0)
    differences = find_differences(student, answers, prompts, TIE[options.dtype])
    print(f"{len(ids) - len(differences)} of {len(ids)} answers are the reference's", *differences, sep="\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
