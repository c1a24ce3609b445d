"""Imports run server -> bench -> router -> engines -> models, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("server", "bench", "router", "engines", "models")
"""From the top: a layer may import those behind it."""
OUTSIDE = ("loadtest", "tests")

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
    "opentelemetry": ("server/telemetry/tracing.py",),
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
}


def sources() -> list[Path]:
    files = [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]
    assert len(files) > 50
    return files


@cache
def imported(file: Path) -> tuple[str, ...]:
    """Full names of every module a file imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide their layer"
            names.append(node.module or "")
    return tuple(names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_never_go_up(layer: str) -> None:
    above = (*LAYERS[: LAYERS.index(layer)], *OUTSIDE)
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sorted((ROOT / layer).rglob("*.py"))
        for name in imported(file)
        if name.split(".")[0] in above
    ]
    assert not wrong


def test_imports_of_loadtest_are_none_of_ours() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sorted((ROOT / "loadtest").rglob("*.py"))
        for name in imported(file)
        if name.split(".")[0] in LAYERS
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(HOMES))
def test_heavy_packages_are_imported_at_home_only(package: str) -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for file in sources()
        if package in {name.split(".")[0] for name in imported(file)}
        and not str(file.relative_to(ROOT)).startswith(HOMES[package])
    ]
    assert not wrong


def test_imports_are_seen_inside_functions_too(tmp_path: Path) -> None:
    file = tmp_path / "sly.py"
    file.write_text("def f():\n    from torch.nn import functional\n    import engines.loop.module_engine as loop\n")
    assert list(imported(file)) == ["torch.nn", "engines.loop.module_engine"]


SERVE = """
import sys
import server.commands.cli, server.app, server.serve, server.students.student, engines.build
import models.building.build, models.building.default_student, models.sources.gguf, models.sources.huggingface
heavy = sorted({"torch", "transformers", "vllm", "llama_cpp", "openvino_genai"} & set(sys.modules))
print(",".join(heavy))
"""


def test_default_serving_path_imports_no_torch() -> None:
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
