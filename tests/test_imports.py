"""The house: which storey and which room may import which, and where heavy packages may be imported.

Strings that name a module of ours count as imports too, wherever they stand: a module that is imported by its name, or
a program for another process.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure import (
    ROOT,
    STOREYS,
    circles,
    file_circles,
    imported,
    module_of,
    modules,
    modules_named,
    named,
    room_of,
    uses,
)

OUTSIDE = ("loadtest", "tests")

ROOMS: dict[str, tuple[str, ...]] = {
    "server": (
        "commands",
        "serve",
        "app",
        "api",
        "generation lifecycle http",
        "context",
        "quality",
        "students",
        "telemetry",
        "wire access",
        "long_work",
        "settings tenant_line threads version",
    ),
    "bench": (
        "remote",
        "router engines distill random_gguf",
        "random_model",
        "options peers process",
        "host",
        "machine subject losses",
        "protocol report rounds workload command",
    ),
    "router": (
        "training",
        "router pool",
        "policy cache",
        "ladder",
        "quality",
        "classifier admission language",
        "decision conversation words",
        "tasks",
    ),
    "engines": (
        "evaluation scripted vllm",
        "answerer build",
        "onnx loop remote",
        "scheduling sampler prompt_scores answer_scoring native step_times",
        "contract drawing",
        "sequence grammar_process",
        "grammar_trial",
        "grammar schema_loosening",
        "alternatives",
        "grammar_words schema_parts text prefix_match ranking token_counts config machine cores breaker remote_call "
        "answer_score",
    ),
    "models": (
        "evaluation distill",
        "reference building",
        "student",
        "graphs",
        "sources",
        "tokenizer",
        "chat_template rope bounds least_tokens text_file text_guard thread_priority",
        "token_bytes errors architecture checksums file_writing sampling row_slices",
    ),
    "models.distill": (
        "ablation dry_run",
        "distiller",
        "narrowing",
        "run",
        "cutting",
        "config",
        "loss width_settings",
        "teacher",
        "network steering data",
        "work_folder",
    ),
}
"""The rooms of a storey, from the top, those of one level in one text: a room may import those of lower levels. A file
beside the rooms is a room of its own."""

HOMES = {
    "torch": ("models/", "engines/", "bench/"),
    "transformers": ("models/", "engines/", "bench/"),
    "sklearn": ("bench/",),
    "onnxruntime": ("engines/onnx/", "engines/native/", "bench/"),
    "tensorrt": ("engines/",),
    "vllm": ("engines/", "bench/peers/"),
    "llguidance": ("engines/grammar.py",),
    "llama_cpp": ("bench/",),
    "openvino_genai": ("bench/",),
    "cachetools": ("router/cache/store.py",),
    "redis": ("router/cache/redis_store.py",),
    "aiohttp": ("engines/remote/",),
    "opentelemetry": ("server/telemetry/tracing.py",),
    "fastapi": (),  # only tests read our document with it: starlette is all that the server needs of it
    "pydantic": (),
    "starlette": ("server/", "bench/peers/"),
    "uvicorn": ("server/", "bench/peers/"),
}


@pytest.mark.parametrize("storey", STOREYS)
def test_imports_never_go_up_a_storey(storey: str) -> None:
    above = (*STOREYS[: STOREYS.index(storey)], *OUTSIDE)
    wrong = [
        f"{module} uses {name}"
        for module, file in modules().items()
        if module.split(".")[0] == storey
        for name in (*imported(file), *modules_named(file))
        if name.split(".")[0] in above
    ]
    assert not wrong


def test_imports_of_loadtest_are_none_of_ours() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, file in modules().items()
        if module.split(".")[0] == "loadtest"
        for name in (*imported(file), *modules_named(file))
        if name.split(".")[0] in STOREYS
    ]
    assert not wrong


@pytest.mark.parametrize("storey", ROOMS)
def test_imports_never_go_up_a_room(storey: str) -> None:
    level = {room: number for number, rooms in enumerate(ROOMS[storey]) for room in rooms.split()}
    wrong = []
    for module, others in uses().items():
        room = room_of(module, storey)
        for other in others if room else ():
            other_room = room_of(other, storey)
            if other_room not in (None, room) and level[str(other_room)] <= level[str(room)]:
                wrong.append(f"{module} uses {other}")
    assert not wrong


@pytest.mark.parametrize("storey", ROOMS)
def test_every_room_has_its_level(storey: str) -> None:
    there = {room_of(module, storey) for module in modules()} - {None}
    assert sorted(" ".join(ROOMS[storey]).split()) == sorted(map(str, there))


def test_imports_go_in_no_circle() -> None:
    assert file_circles() == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


@pytest.mark.parametrize("package", sorted(HOMES))
def test_heavy_packages_are_imported_at_home_only(package: str) -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for module, file in modules().items()
        if module.split(".")[0] in STOREYS
        and package in {name.split(".")[0] for name in imported(file)}
        and not str(file.relative_to(ROOT)).startswith(HOMES[package])
    ]
    assert not wrong


def test_imports_are_seen_inside_functions_and_texts_too(tmp_path: Path) -> None:
    file = tmp_path / "sly.py"
    file.write_text(
        '"""Not engines.prose."""\n'
        "def f():\n    from torch.nn import functional\n    import engines.loop as loop\n"
        '    return "engines.onnx.runner:Runner", "from server.app import x", "router.enabled is a setting"\n'
    )
    assert list(imported(file)) == ["torch.nn.functional", "engines.loop"]
    assert list(named(file)) == ["engines.onnx.runner", "server.app", "router.enabled"]
    known = {"engines", "engines.onnx", "engines.onnx.runner", "router"}
    assert module_of("engines.onnx.runner", known) == "engines.onnx.runner"
    assert module_of("router.enabled", known) is None


SERVE = """
import sys
import server.commands.cli, server.app, server.serve, server.students.student, engines.build
import models.building.default_student, models.sources.gguf, models.sources.huggingface
early = {"models.building.build"} & set(sys.modules)  # what is there already is not built
import models.building.build
unused = {"torch", "transformers", "vllm", "llama_cpp", "openvino_genai", "onnx", "google.protobuf", "tqdm", "fastapi"}
unused |= {"pydantic", "filelock"}
print(",".join(sorted(early | unused & set(sys.modules))))
"""


def test_default_serving_path_imports_nothing_heavy_that_it_does_not_use() -> None:
    """Every start of a server would wait for it."""
    done = subprocess.run([sys.executable, "-c", SERVE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


BUILD_AND_SERVE = """
import sys
from pathlib import Path
sys.modules["torch"] = sys.modules["transformers"] = None
from engines.build import build_engine
from engines.config import EngineConfig
from engines.sequence import GenerationRequest, SamplingParams
from models.building.build import build_student
from models.student.folder import Student
source, out = map(Path, sys.argv[1:])
build_student(source, out, precisions=("fp32",))
engine = build_engine(Student.open(out), EngineConfig(precision="fp32", max_running=2))
ended = []
engine.start(lambda events: ended.extend(event.finish for event in events if event.finish))
sampling = SamplingParams(max_tokens=3, ignore_eos=True)
engine.submit(GenerationRequest(id="a", prompt_token_ids=(5, 6), path="full", sampling=sampling))
engine.stop(60)
print(*(finish.reason for finish in ended))
"""


def test_a_student_is_built_and_served_without_torch(tiny_source: object, tmp_path: Path) -> None:
    assert callable(tiny_source)
    arguments = [str(tiny_source("llama")), str(tmp_path / "student")]
    done = subprocess.run(
        [sys.executable, "-c", BUILD_AND_SERVE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "length", done.stderr


@pytest.mark.parametrize(
    "module",
    ["engines.loop.module_engine", "server.commands.cli", "engines.scheduling.scheduler", "models.student.manifest"],
)
def test_importing_changes_nothing_around(module: str) -> None:
    """No logging set-up, no threads, no onnxruntime before an engine is built."""
    code = (
        f"import logging, threading, sys\nimport {module}\n"
        "print(logging.getLogger().handlers, threading.active_count(), 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 1 False"
