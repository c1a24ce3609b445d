"""A student with exits that were trained here answers on every path as torch does."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.build import build_engine
from engines.config import EngineConfig
from engines.sequence import FinishReason, GenerationRequest, SamplingParams
from models.building.exits import read_exits
from models.distill.config import config_from
from models.distill.distiller import Distiller
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.sources.source import open_source
from models.student.folder import Student

NUM_TOKENS = 16
TEXT = "the quick brown fox jumps over the lazy dog and then the other foxes jump too"
WORDS = TEXT.split()
PROMPTS = {str(n): tuple((11 * n + 5 * i) % 300 + 3 for i in range(3 + 6 * n)) for n in range(4)}


@dataclass(slots=True, kw_only=True, frozen=True)
class Distilled:
    """A student, and what it was made from."""

    student: Student
    source: Path
    exits: Path


def write_data(file: Path) -> Path:
    draw = random.Random(1)
    rows = [
        {"task": ("math", "fact")[n % 2], "prompt": " ".join(draw.choices(WORDS, k=8)), "answer": f"{n} foxes"}
        for n in range(48)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def distilled(tiny_source: Callable[..., Path], tmp_path: Path) -> Distilled:
    torch.set_num_threads(1)
    source = tiny_source("llama")
    config = {
        "teacher": str(source),
        "data": str(write_data(tmp_path / "rows.jsonl")),
        "out": str(tmp_path / "student"),
        "modules": "knowledge:1,reasoning:2,adapter:1",
        "precisions": ["fp32"],
        "training": {"epochs": 1, "batch_tokens": 256, "head_tokens": 64},
        "learning_rate": {"peak": 5e-3},
        "text": {"max_tokens": 96},
        "exits": [
            {"after": "knowledge", "path": "shallow", "copied_from": [2, 3]},
            {"after": "reasoning", "path": "deep", "has_map": False},
        ],
    }
    distiller = Distiller(config=config_from(config, "test"))
    assert distiller.train().step >= 3
    distiller.export()
    exits = tmp_path / "student.work" / "exits.safetensors"
    return Distilled(student=Student.open(tmp_path / "student"), source=source, exits=exits)


def torch_exits(distilled: Distilled, trunk: Trunk) -> dict[str, ExitModel]:
    """By path; with the weights of the exits file, which are fp16."""
    exits = read_exits(distilled.exits)
    depths = {"shallow_exit": 1, "deep_exit": 3}
    found = {}
    for plan in exits.plan.exits:
        model = ExitModel(
            trunk, name=plan.name, depth=depths[plan.name], copied_from=plan.copied_from, has_map=plan.has_map
        )
        for name, value in model.tensors().items():
            value.copy_(torch.from_numpy(exits.read(f"{plan.name}.{name}")))
        found[plan.name.removesuffix("_exit")] = model
    return found


@torch.no_grad()
def greedy(trunk: Trunk, exit: ExitModel | None, prompt: tuple[int, ...]) -> list[int]:
    """Token by token over the whole text; full depth without an exit."""
    ids = list(prompt)
    for _ in range(NUM_TOKENS):
        depth = trunk.architecture.num_layers if exit is None else exit.depth
        hidden_BTH = trunk.run(trunk.embed(torch.tensor([ids])), range(depth))
        normed_BTH = trunk.norm(hidden_BTH) if exit is None else exit(hidden_BTH)
        ids.append(int(trunk.logits(normed_BTH[0, -1]).argmax()))
    return ids[len(prompt) :]


def test_every_path_says_what_torch_says(distilled: Distilled, make_listener: Any) -> None:
    trunk = Trunk(open_source(distilled.source))
    by_path: dict[str, ExitModel | None] = {**torch_exits(distilled, trunk), "full": None}
    assert {path.name for path in distilled.student.manifest.paths} == by_path.keys()
    engine = build_engine(distilled.student, EngineConfig(precision="fp32", max_running=4, num_threads=1))
    listener = make_listener()
    engine.start(listener.publish)
    try:
        # All paths in one batch, so that their rows share the shallow modules.
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        for id, prompt in PROMPTS.items():
            for path in by_path:
                request = GenerationRequest(id=f"{id}/{path}", prompt_token_ids=prompt, path=path, sampling=sampling)
                engine.submit(request)
        for id in PROMPTS:
            for path in by_path:
                assert listener.finish(f"{id}/{path}").reason is FinishReason.LENGTH
    finally:
        engine.stop(0)
    texts = set()
    for path, exit in by_path.items():
        for id, prompt in PROMPTS.items():
            expected = greedy(trunk, exit, prompt)
            assert listener.tokens(f"{id}/{path}") == expected, (id, path)
            texts.add((id, *expected))
    # The paths do not all say the same, so that running the wrong one would show.
    assert len(texts) > 2 * len(PROMPTS)
