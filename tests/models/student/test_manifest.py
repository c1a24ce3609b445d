"""A manifest survives its file, and every inconsistency is found and named."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from models.architecture import Architecture
from models.errors import ConfigError
from models.sampling import RecommendedSampling
from models.student.cut import default_modules, exits_of, paths_of
from models.student.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    CheapHead,
    DepthRule,
    Exit,
    FileEntry,
    Manifest,
    Module,
    PathFigures,
    Quality,
    Retention,
    StudentPath,
    Variant,
    Width,
    find_problems,
    read_manifest,
    write_manifest,
)

STAGES = ("knowledge", "reasoning", "adapter", "knowledge_exit", "reasoning_exit", "adapter_exit")
VARIANT = Variant(
    name="fp32",
    stages={stage: f"{stage}.onnx" for stage in STAGES},
    head="head.onnx",
    embedding="e.npy",
    weight_bytes=9,
)


@pytest.fixture
def manifest() -> Manifest:
    modules = default_modules(10)
    architecture = Architecture(
        family="qwen3",
        num_layers=10,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=320,
        max_context_tokens=128,
        norm_eps=1e-6,
        rope_theta=1e4,
        has_qk_norm=True,
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        name="tiny",
        source="model.safetensors",
        source_sha256="ab" * 32,
        licence="apache-2.0",
        architecture=architecture,
        modules=modules,
        exits=exits_of(modules),
        paths=paths_of(modules),
        tasks={"math": "full", "fact": "knowledge"},
        depth_rules=(DepthRule(max_prompt_tokens=64, path="knowledge"), DepthRule(max_prompt_tokens=None, path="full")),
        variants=(VARIANT,),
        files=(FileEntry(name="head.onnx", size_bytes=3, sha256="cd" * 32),),
        quality=(Quality(path="full", variant="fp32", cross_entropy=2.25, text="eval", num_tokens=100),),
        retention=(retention(score=0.9), retention(variant="int8", score=0.8), retention(task="fact", score=0.7)),
    )


def retention(**fields: Any) -> Retention:
    """Of the knowledge path on math at fp32, unless given otherwise; the interval follows the score."""
    score = fields.get("score", 0.5)
    values = {"path": "knowledge", "task": "math", "variant": "fp32", "score": score, "low": score, "high": score}
    return Retention(**(values | fields))


def changed(manifest: Manifest, **fields: Any) -> Manifest:
    return msgspec.structs.replace(manifest, **fields)


def test_manifest_survives_its_file(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_manifest_may_have_recommended_sampling(manifest: Manifest, tmp_path: Path) -> None:
    sampling = RecommendedSampling(temperature=0.2, top_p=0.9)
    write_manifest(tmp_path, changed(manifest, sampling=sampling))
    assert read_manifest(tmp_path).sampling == sampling
    stored = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert stored.pop("sampling") == {"temperature": 0.2, "top_p": 0.9}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(stored))  # as written by versions before
    assert read_manifest(tmp_path).sampling is None


def test_manifest_with_sampling_out_of_range_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, changed(manifest, sampling=RecommendedSampling(temperature=7.0)))
    with pytest.raises(ConfigError, match=r"sampling\.temperature"):
        read_manifest(tmp_path)


def test_manifest_finds_its_records_by_name(manifest: Manifest) -> None:
    assert manifest.path("reasoning").modules == ("knowledge", "reasoning")
    assert manifest.module("adapter").first_layer == 8
    assert manifest.exit("adapter_exit").after == "adapter"
    assert manifest.variant("fp32") is VARIANT
    assert manifest.full_path.name == "full"
    with pytest.raises(KeyError):
        manifest.path("nowhere")


@pytest.mark.parametrize(
    ("path", "task", "variant", "score"),
    [
        ("knowledge", "math", "fp32", 0.9),
        ("knowledge", "math", "int8", 0.8),
        ("knowledge", "fact", "fp32", 0.7),
        ("knowledge", "fact", "int8", None),
        ("reasoning", "math", "fp32", None),
    ],
)
def test_manifest_finds_what_was_measured(
    manifest: Manifest, path: str, task: str, variant: str, score: float | None
) -> None:
    found = manifest.find_retention(path, task, variant)
    assert (found and found.score) == score


def test_manifest_without_retention_can_be_read(manifest: Manifest, tmp_path: Path) -> None:
    raw = msgspec.to_builtins(manifest)
    del raw["retention"]
    (tmp_path / MANIFEST_NAME).write_bytes(msgspec.json.encode(raw))
    assert read_manifest(tmp_path).retention == ()


def test_manifest_orders_stages_as_they_run(manifest: Manifest) -> None:
    assert manifest.stages(manifest.path("reasoning")) == ("knowledge", "reasoning", "reasoning_exit")
    assert manifest.stage_order() == (
        *("knowledge", "knowledge_exit"),
        *("reasoning", "reasoning_exit"),
        *("adapter", "adapter_exit"),
    )


@pytest.mark.parametrize("trained", [{"num_blocks": 1}, {"has_map": True}])
def test_full_path_leaves_by_the_models_own_end(manifest: Manifest, trained: dict[str, Any]) -> None:
    own = manifest.full_path
    exits = (Exit(name="late_exit", after="adapter", is_trained=True, **trained), *manifest.exits)
    other = StudentPath(name="other", modules=own.modules, exit="late_exit")
    both = changed(manifest, exits=exits, paths=(other, *manifest.paths))
    assert find_problems(changed(both, variants=())) == []
    assert both.full_path == own
    alone = find_problems(changed(both, variants=(), paths=(*manifest.paths[:-1], other), tasks={}, depth_rules=()))
    assert alone == ["no path runs every module and leaves by the model's own end"]


def test_stage_order_has_every_exit_behind_its_module(manifest: Manifest) -> None:
    more = (Exit(name="fact_exit", after="knowledge"), *manifest.exits, Exit(name="math_exit", after="knowledge"))
    assert changed(manifest, exits=more).stage_order()[:4] == ("knowledge", "fact_exit", "knowledge_exit", "math_exit")


def test_manifest_counts_layers_of_modules_and_exit_blocks(manifest: Manifest) -> None:
    exits = (Exit(name="knowledge_exit", after="knowledge", num_blocks=2), *manifest.exits[1:])
    with_blocks = changed(manifest, exits=exits)
    counts = {stage: with_blocks.num_layers_in(stage) for stage in ("knowledge", "knowledge_exit", "adapter_exit")}
    assert counts == {"knowledge": 3, "knowledge_exit": 2, "adapter_exit": 0}


def test_manifest_without_faults_has_no_problems(manifest: Manifest) -> None:
    assert find_problems(manifest) == []


def path(name: str, *modules: str, exit: str | None = None) -> StudentPath:
    return StudentPath(name=name, modules=modules, exit=exit or f"{modules[-1]}_exit")


def head(**changes: Any) -> CheapHead:
    return msgspec.structs.replace(CheapHead(rank=4, num_frequent=2, num_candidates=2, sha256=""), **changes)


def figures(path: str = "knowledge") -> PathFigures:
    return PathFigures(path=path, head="exact", task="math", variant="fp32", language="en")


def test_heads_are_those_of_a_precision(manifest: Manifest) -> None:
    cheap = msgspec.structs.replace(VARIANT, name="w8a8-native", cheap_head="c.onnx")
    both = changed(manifest, variants=(VARIANT, cheap))
    assert [both.heads_at(name) for name in ("fp32", "w8a8-native", "none")] == [
        ("exact",),
        ("exact", "cheap"),
        ("exact",),
    ]


def width(name: str, neurons: int) -> Width:
    return Width(name=name, neurons=(neurons,) * 10)


FULL = path("full", "knowledge", "reasoning", "adapter")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"format_version": 99}, "format_version 99 is not"),
        ({"modules": (Module(name="knowledge", first_layer=1, num_layers=9),)}, "must start at layer 0"),
        ({"modules": (Module(name="knowledge", first_layer=0, num_layers=0),)}, "have at least one layer"),
        ({"modules": (Module(name="knowledge", first_layer=0, num_layers=9),)}, "modules cover 9 layers of 10"),
        ({"modules": tuple(Module(name="a", first_layer=i * 5, num_layers=5) for i in (0, 1))}, "'a' is used twice"),
        ({"exits": (Exit(name="adapter", after="adapter"),)}, "the name 'adapter' is used twice"),
        ({"paths": (FULL, path("back", "reasoning", "knowledge"))}, "must name modules in their order"),
        ({"paths": (FULL, path("twice", "knowledge", "knowledge"))}, "must name modules in their order"),
        ({"paths": (FULL, path("odd", "knowledge", "poetry"))}, "must name modules in their order"),
        ({"paths": (FULL, StudentPath(name="empty", modules=(), exit="x"))}, "must name modules in their order"),
        ({"paths": (FULL, path("lost", "knowledge", exit="way_out"))}, "unknown exit 'way_out'"),
        ({"paths": (FULL, path("late", "knowledge", exit="adapter_exit"))}, "its exit is elsewhere"),
        ({"paths": (path("short", "knowledge"),)}, "no path runs every module"),
        ({"paths": (path("full", "knowledge", "reasoning", "adapter", exit="x"),)}, "no path runs every module"),
        ({"paths": (FULL, path("short", "knowledge"), path("short", "knowledge"))}, "the name 'short' is used twice"),
        ({"exits": (Exit(name="head", after="adapter"),)}, "cannot be called 'head'"),
        ({"exits": (Exit(name="cheap_head", after="adapter"),)}, "cannot be called 'cheap_head'"),
        ({"cheap_head": head(rank=65)}, "rank 65 must be from 1 to the hidden size, 64"),
        ({"cheap_head": head(rank=0)}, "rank 0 must be from 1"),
        ({"cheap_head": head(num_candidates=10**6)}, "1000000 candidates must be at least 1 each"),
        ({"cheap_head": head(num_frequent=0)}, "0 frequent tokens"),
        ({"cheap_head": head(mean_candidates=2.5)}, "2.5 candidates on average"),
        (
            {"variants": (msgspec.structs.replace(VARIANT, cheap_head="c.onnx"),)},
            "'fp32' has a cheap head, but the student has none",
        ),
        ({"tasks": {"math": "nowhere"}}, "task 'math' has no path 'nowhere'"),
        ({"depth_rules": (DepthRule(max_prompt_tokens=1, path="nowhere"),)}, "a depth rule names no path: 'nowhere'"),
        (
            {"variants": (msgspec.structs.replace(VARIANT, stages={"knowledge": "k.onnx"}),)},
            "has no graph for adapter, adapter_exit, knowledge_exit, reasoning, reasoning_exit",
        ),
        ({"retention": (retention(path="nowhere"),)}, "'nowhere' on 'math' at 'fp32': there is no such path"),
        ({"retention": (retention(low=0.6, high=0.7),)}, "0.5 is outside its interval 0.6 to 0.7"),
        ({"retention": (retention(low=0.3, high=0.4),)}, "0.5 is outside its interval 0.3 to 0.4"),
        ({"retention": (retention(), retention(score=1.0))}, "'knowledge' on 'math' at 'fp32' is given twice"),
        (
            {"figures": (figures(path="nowhere"),)},
            "'nowhere' with the exact head on 'math' at 'fp32': there is no such path",
        ),
        ({"figures": (figures(), figures())}, "on 'math' at 'fp32' in language 'en' are given twice"),
        ({"widths": (width("slim", 32),)}, "'slim' has 32 neurons in layer 0: that must be a multiple of 64"),
        ({"widths": (width("slim", 128),)}, "and at most the layer's 96"),
        ({"widths": tuple(width(f"w{i}", 64) for i in range(8))}, "there are 8 widths, and a student can have 7"),
        ({"widths": (Width(name="slim", neurons=(64,) * 9),)}, "'slim' has neurons for 9 layers of 10"),
        ({"widths": (width("slim", 64), width("slim", 64))}, "the name 'slim' is used twice"),
        ({"widths": (width("a/b", 64),)}, "a width cannot be called 'a/b'"),
        ({"paths": (FULL, msgspec.structs.replace(FULL, name="thin", width="slim"))}, "an unknown width 'slim'"),
        (
            {"widths": (width("slim", 64),), "paths": (msgspec.structs.replace(FULL, width="slim"),)},
            "no path runs every module",
        ),
    ],
)
def test_manifest_problems_are_named(manifest: Manifest, tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    wrong = changed(manifest, **fields)
    assert any(problem in found for found in find_problems(wrong)), find_problems(wrong)
    write_manifest(tmp_path, wrong)
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    assert problem in str(caught.value)


def test_manifest_problems_are_reported_together(manifest: Manifest) -> None:
    wrong = changed(manifest, format_version=99, tasks={"math": "nowhere", "fact": "gone"})
    assert len(find_problems(wrong)) == 3


def test_read_manifest_of_a_folder_without_one_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fenhe build"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', ""])
def test_read_manifest_of_a_damaged_file_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ConfigError, match=MANIFEST_NAME):
        read_manifest(tmp_path)


def test_read_manifest_refuses_unknown_keys(manifest: Manifest, tmp_path: Path) -> None:
    raw = msgspec.to_builtins(manifest) | {"colour": "red"}
    (tmp_path / MANIFEST_NAME).write_bytes(msgspec.json.encode(raw))
    with pytest.raises(ConfigError, match="colour"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["", " ", "full ", "fu\r\nll", "fu:ll", "fu/ll", "..", "é"])
def test_names_that_fit_no_header_are_found(manifest: Manifest, name: str) -> None:
    paths = (*manifest.paths[:-1], msgspec.structs.replace(manifest.paths[-1], name=name))
    assert any(f"a path cannot be called {name!r}" in one for one in find_problems(changed(manifest, paths=paths)))
    modules = (msgspec.structs.replace(manifest.modules[0], name=name), *manifest.modules[1:])
    problems = find_problems(changed(manifest, modules=modules))
    assert any(f"a module or exit cannot be called {name!r}" in problem for problem in problems)


def test_plain_names_are_no_problem(manifest: Manifest) -> None:
    assert not find_problems(manifest)
    paths = tuple(msgspec.structs.replace(path, name=f"{path.name} v1.5_a-b+c") for path in manifest.paths)
    assert not find_problems(changed(manifest, paths=paths, tasks={}, depth_rules=(), retention=()))


def test_num_layers_on_a_path_counts_those_of_its_exit(manifest: Manifest) -> None:
    exits = (Exit(name="knowledge_exit", after="knowledge", num_blocks=2), *manifest.exits[1:])
    with_blocks = msgspec.structs.replace(manifest, exits=exits)
    shallow = with_blocks.path("knowledge")
    assert with_blocks.num_layers_on(shallow) == manifest.num_layers_on(shallow) + 2
    assert with_blocks.num_layers_on(with_blocks.full_path) == 10


def test_path_ranks_rank_the_deepest_first(manifest: Manifest) -> None:
    assert manifest.path_ranks == {"full": 0, "reasoning": 1, "knowledge": 2}


def test_path_ranks_rank_the_widest_first_among_equally_deep_paths(manifest: Manifest) -> None:
    widths = (width("wide", 64), width("slim", 64))
    full, shallow = manifest.full_path, manifest.path("knowledge")
    narrow = tuple(
        msgspec.structs.replace(path, name=f"{path.name}-{one.name}", width=one.name)
        for one in reversed(widths)
        for path in (shallow, full)
    )
    ranks = msgspec.structs.replace(manifest, widths=widths, paths=(*narrow, *manifest.paths)).path_ranks
    assert sorted(ranks, key=ranks.__getitem__) == [
        *("full", "full-wide", "full-slim"),
        "reasoning",
        *("knowledge", "knowledge-wide", "knowledge-slim"),
    ]


def test_path_ranks_refuse_paths_whose_rows_cannot_be_a_prefix(manifest: Manifest) -> None:
    paths = (
        StudentPath(name="full", modules=("knowledge", "reasoning", "adapter"), exit="adapter_exit"),
        StudentPath(name="skip", modules=("knowledge", "adapter"), exit="adapter_exit"),
        StudentPath(name="short", modules=("knowledge", "reasoning"), exit="reasoning_exit"),
    )
    with pytest.raises(ConfigError, match="not nested around module"):
        _ = msgspec.structs.replace(manifest, paths=paths).path_ranks


def test_orders_of_paths_are_found_once_and_not_handed_on_to_changed_manifests(manifest: Manifest) -> None:
    assert manifest.path_ranks is manifest.path_ranks
    assert manifest.paths_by_depth is manifest.paths_by_depth
    shorter = msgspec.structs.replace(manifest, paths=tuple(p for p in manifest.paths if p.name != "reasoning"))
    assert shorter.path_ranks == {"full": 0, "knowledge": 1}
    assert [path.name for path in shorter.paths_by_depth] == ["knowledge", "full"]
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest
