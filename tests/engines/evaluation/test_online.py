"""The online figure beside an evaluation's: the same likelihoods, and a full path that keeps all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.answerer import EngineAnswerer
from engines.build import build_engine
from engines.config import EngineConfig
from engines.evaluation.choices import EvalConfig
from engines.evaluation.online import SAMPLING, lines_of, main, online_ratio, passages_of, score_in_background
from engines.evaluation.scorer import PathRuns, stages_of
from engines.evaluation.scoring import Shown, score_answers
from engines.evaluation.writing import Writer
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.evaluation.rows import Passage
from models.evaluation.scores import PathHead
from models.evaluation.texts import Prompt

FULL, SHALLOW = PathHead("full", "exact"), PathHead("knowledge", "exact")
PROMPTS = [Prompt(task="legal", prompt=f"the fox {n} and the dog") for n in range(24)]
MAX_TOKENS = 96


@pytest.fixture
def student(tiny_student: Callable[..., Any]) -> Any:
    return tiny_student("llama").student


def test_online_scores_are_the_likelihoods_of_an_evaluation(student: Any, tmp_path: Path) -> None:
    config = EvalConfig(num_threads=1, max_text_tokens=MAX_TOKENS, answers_file=tmp_path / "out.answers.jsonl")
    with Writer(student, "fp32", config) as writer:
        written = {column: writer.answers(PROMPTS, column) for column in (FULL, SHALLOW)}
    limits = RunnerLimits(num_slots=1, capacity_tokens=MAX_TOKENS, num_threads=1)
    runner = OnnxRunner(student, PrecisionPlan(many="fp32"), limits)
    for stage in stages_of(student.manifest, ("full",)):
        runner.load(stage)
    runs = PathRuns(runner, student.manifest, ("full",))
    evaluated = score_answers(runs, written, student.tokenizer, MAX_TOKENS, Shown("fp32", None))
    engine = build_engine(
        student, EngineConfig(precision="fp32", max_running=1, max_context_tokens=MAX_TOKENS, num_threads=1)
    )
    passages = {column: passages_of(answers, student, MAX_TOKENS)["legal"] for column, answers in written.items()}
    flat = score_in_background(engine, "full", [*passages[FULL], *passages[SHALLOW]])
    engine.stop(0)
    own, other = flat[: len(passages[FULL])], flat[len(passages[FULL]) :]
    for scores, column in ((own, FULL), (other, SHALLOW)):
        assert [one.nats for one in scores] == pytest.approx([one.nats for one in evaluated[column]], rel=1e-4)
        assert [one.num_tokens for one in scores] == [one.num_tokens for one in evaluated[column]]


def test_full_path_s_own_tokens_keep_all_and_another_path_s_do_not(student: Any) -> None:
    """Tokens as they were drawn: those of text that is read again may be others."""
    config = EngineConfig(precision="fp32", max_running=4, max_context_tokens=MAX_TOKENS, num_threads=1)
    prompts = [tuple(range(40 + n, 50 + n)) for n in range(24)]
    ratios = {}
    for path in ("full", "knowledge"):
        with EngineAnswerer(build_engine(student, config), path, student.tokenizer.eos_token_ids) as answerer:
            options = {"temperature": SAMPLING.temperature, "top_p": SAMPLING.top_p}
            drawn = dict(answerer.answer(prompts, max_tokens=40, seed=1, **options))
        passages = [
            Passage(dataset="x", task="legal", token_ids=(*prompt, *drawn[index]), boundary=len(prompt))
            for index, prompt in enumerate(prompts)
        ]
        engine = build_engine(student, config)
        ratios[path] = online_ratio(score_in_background(engine, "full", passages), "legal")
        engine.stop(0)
    assert ratios["full"].value == pytest.approx(1.0, abs=0.02)
    assert ratios["knowledge"].low > 1.1


def test_table_has_a_line_for_every_path_and_task(
    student: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvalConfig(num_threads=1, max_text_tokens=MAX_TOKENS, answers_file=tmp_path / "out.answers.jsonl")
    with Writer(student, "fp32", config) as writer:
        for column in (FULL, SHALLOW):
            writer.answers(PROMPTS[:3], column)
    name = "rescored_nats_ratio"
    figures = {"legal": {name: 1.5, "intervals": {name: [1.2, 1.9]}, "rows": {name: 3}}}
    points = [
        {"path": column.path, "head": column.head, "precision": "fp32", "figures": figures}
        for column in (FULL, SHALLOW)
    ]
    (tmp_path / "out.json").write_text(json.dumps({"points": points}))
    lines = list(lines_of(student, tmp_path / "out.json", config, "fp32"))
    assert [line.split()[:3] for line in lines] == [["full", "exact", "legal"], ["knowledge", "exact", "legal"]]
    assert all(line.endswith("rescored 1.500 [1.200, 1.900]") for line in lines)
    (tmp_path / "out.json").write_text("{}")
    assert main([str(student.folder), str(tmp_path / "out.json"), "--precision", "fp32"]) == 2
    assert "is not what `fenhe eval --json` writes" in capsys.readouterr().err
