"""`fenhe eval` from the command line to the manifest."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from models.building.build import build_student
from models.evaluation.compute import compute_share
from models.student.manifest import CheapHead, HeadKind, PathFigures, read_manifest
from server.commands.cli import main
from server.commands.eval import mean_default_compute

FIELDS = {
    "path",
    "precision",
    "layers",
    "compute_share",
    "agreement",
    "kl",
    "perplexity_ratio",
    "retention",
    "bytes",
    "decode_tokens_per_s",
}


@pytest.fixture
def student(tiny_source: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    build_student(tiny_source("llama", vocab_size=320), folder, modules="first:2,last:2", precisions=("fp32",))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"task": "fact", "prompt": "who?", "answer": "fox", "choices": ["dog", "fox"]}] * 3
    (folder / "eval_trivia.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held.jsonl").write_text(
        '{"task": "legal", "prompt": "why?", "answer": "the lazy dog 0123456789 0123456789"}\n'
    )
    return folder


def run(student: Path, data: Path, *more: str) -> int:
    return main(["eval", str(student), "--data", str(data), "--threads", "1", *more])


def test_figures_go_to_the_manifest_the_json_and_the_page(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    heldout = ("--heldout", str(data / "held.jsonl"))
    assert run(student, data, *heldout, "--limit", "2", "--json", str(out), "--html", str(page)) == 0
    found = json.loads(out.read_text())
    assert found["num_rows"] == {"trivia": 2, "heldout": 1}
    assert [point["path"] for point in found["points"]] == ["first", "full"]
    for point in found["points"]:
        assert set(point) >= FIELDS
    manifest = read_manifest(student)
    kept = manifest.find_retention("first", "legal", "fp32")
    assert kept is not None
    assert kept.score == found["points"][0]["retention"]["legal"]["score"]
    assert manifest.find_retention("full", "legal", "fp32") is not None
    assert {quality.text for quality in manifest.quality} == {"trivia answers", "heldout answers"}
    assert "first" in page.read_text()
    assert "interactive" in capsys.readouterr().out


def test_no_write_leaves_the_manifest(student: Path, data: Path) -> None:
    before = (student / "manifest.json").read_bytes()
    assert run(student, data, "--no-write", "--paths", "first") == 0
    assert run(student, data, "--quick") == 0
    assert (student / "manifest.json").read_bytes() == before


def test_quick_takes_a_few_rows_of_every_task_unless_it_is_told_how_many(
    student: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.commands.eval.QUICK_ROWS", 1)
    out = tmp_path / "out.json"
    for more, num_rows in (((), 1), (("--limit", "2"), 2)):
        assert run(student, data, "--quick", "--json", str(out), *more) == 0
        assert json.loads(out.read_text())["num_rows"] == {"trivia": num_rows}


def test_paths_and_tasks_can_be_chosen_in_lists_or_one_by_one(student: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    more = ("--heldout", str(data / "held.jsonl"), "--json", str(out), "--no-write")
    found = []
    for chosen in (("--task", "legal", "--path", "full"), ("--tasks", "legal,fact", "--path", "full,first")):
        assert run(student, data, *chosen, *more) == 0
        found.append(json.loads(out.read_text()))
    assert [one["num_rows"] for one in found] == [{"heldout": 1}, {"trivia": 3, "heldout": 1}]
    assert [[point["path"] for point in one["points"]] for one in found] == [["full"], ["first", "full"]]
    assert run(student, data, "--task", "legal", "--task", "fact", "--path", "first", "--path", "full", *more) == 0
    assert json.loads(out.read_text())["num_rows"] == found[1]["num_rows"]


def write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_figures_of_every_kind_of_text_go_everywhere(student: Path, data: Path, tmp_path: Path) -> None:
    write(data / "eval_plain.jsonl", [{"task": "general", "text": f"the fox {n} jumps"} for n in range(3)])
    write(data / "eval_blimp.jsonl", [{"set": "s", "good": "the fox jumps", "bad": "the fox jump"}] * 2)
    prompts, out, page = tmp_path / "prompts.jsonl", tmp_path / "out.json", tmp_path / "out.html"
    write(prompts, [{"task": "legal", "prompt": f"why {n}?"} for n in range(6)])
    measured = tmp_path / "measured.json"
    more = ("--prompts", str(prompts), "--own-words", "3", "--answers", "1", "--json", str(out), "--html", str(page))
    assert run(student, data, *more, "--measured", str(measured)) == 0
    found = json.loads(out.read_text())
    assert found["num_rows"]["plain texts"] == 3
    assert found["num_rows"]["pairs of sentences"] == 2
    assert 0 < found["mean_default_compute"] <= 1
    figures = found["points"][0]["figures"]
    assert set(figures) == {"legal", "fact"}
    assert figures["legal"]["rows"]["perplexity_ratio_own"] <= 3
    assert figures["legal"]["rows"]["rescored_nats_ratio"] <= 1
    assert found["points"][0]["request_compute"]["legal"]["num_prompt_tokens"] > 0
    own = [json.loads(line) for line in (tmp_path / "out.own.jsonl").read_text().splitlines()]
    assert {row["task"] for row in own} == {"legal", "fact"}
    assert (tmp_path / "out.answers.jsonl").exists()
    assert "legal: figures and verdicts" in page.read_text()
    manifest = read_manifest(student)
    kept = {(one.path, one.head, one.task, one.variant, one.language): one for one in manifest.figures}
    assert set(kept) == {(path, "exact", task, "fp32", "en") for path in ("first", "full") for task in figures}
    assert (
        kept["first", "exact", "legal", "fp32", "en"].perplexity_ratio_own == figures["legal"]["perplexity_ratio_own"]
    )
    shipped = json.loads(measured.read_text())
    assert shipped["cheap_head_sha256"] == ""
    assert len(shipped["figures"]) == len(manifest.figures)


def test_own_words_are_those_given_and_quick_writes_none(student: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    heldout = ("--heldout", str(data / "held.jsonl"))
    assert run(student, data, *heldout, "--no-write", "--json", str(out), "--answers", "0") == 0
    assert json.loads(out.read_text())["points"][0]["figures"]["legal"]["rows"]["perplexity_ratio_own"] == 1
    assert run(student, data, "--quick", "--json", str(out)) == 0
    assert "perplexity_ratio_own" not in json.loads(out.read_text())["points"][0]["figures"]["fact"]["rows"]
    assert sorted(file.name for file in tmp_path.glob("out*")) == ["out.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "--limit"),
        (["--threads", "0"], "--threads"),
        (["--paths", "deep"], "deep"),
        (["--path", ","], "--path names nothing"),
        (["--task", "legal"], "no row is of legal, only of fact"),
        (["--precision", "int4"], "int4"),
        (["--json", "/nowhere/out.json"], "--json"),
        (["--measured", "/nowhere/out.json"], "--measured"),
        (["--own-words", "0"], "--own-words must be at least 1"),
        (["--answers", "-1"], "--answers must be at least 0"),
        (["--prompts-heldout", "1.0"], "--prompts-heldout must be above 0"),
        (["--prompts", "/nowhere/prompts.jsonl"], "prompts.jsonl"),
        (["--steps", "/nowhere/steps.jsonl"], "steps.jsonl"),
    ],
)
def test_mistakes_are_one_line(
    student: Path, data: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(student, data, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_without_rows_it_says_how_to_name_them(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(student)]) == 2
    assert "--data" in capsys.readouterr().err


def passed(path: str, head: HeadKind, task: str) -> PathFigures:
    return PathFigures(
        path=path,
        head=head,
        task=task,
        variant="fp32",
        language="en",
        perplexity_ratio_own=1.0,
        intervals={"perplexity_ratio_own": (1.0, 1.0)},
        verdict_field="passed",
    )


def test_mean_default_compute_is_that_of_the_paths_an_idle_server_takes(student: Path) -> None:
    """Of four tasks, three may take the shallow path with the cheap head and none is named for the fourth."""
    assert mean_default_compute(read_manifest(student), "fp32") == 1.0
    manifest = read_manifest(student)
    head = CheapHead(rank=8, num_frequent=8, num_candidates=8, sha256="ab")
    variant = msgspec.structs.replace(manifest.variants[0], cheap_head="cheap.onnx")
    tasks = ("math", "legal", "creative")
    manifest = msgspec.structs.replace(
        manifest,
        cheap_head=head,
        variants=(variant,),
        tasks=dict.fromkeys(tasks, "first"),
        depth_rules=(),
        figures=tuple(passed("first", "cheap", task) for task in tasks),
    )
    share = compute_share(manifest, manifest.path("first"), head="cheap")
    assert share < 1
    assert mean_default_compute(manifest, "fp32") == pytest.approx((3 * share + 1.0) / 4)
