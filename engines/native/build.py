"""Compiles the operators with the system's C compiler; `python -m engines.native [FOLDER]` does it ahead of time.

Ahead of time that is for every processor of this kind, as for a wheel (deploy/wheel/build.sh); at a first start for the
one that is there, in a quarter of the time. The library's name carries a digest of its source and flags, so a stale one
is never found.
"""

import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.cores import usable_cores
from models.errors import reason_of
from models.file_writing import FIX, NO_SPACE, temporary_in

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
SOURCE = PACKAGE / "source"
PARTS = (
    "dispatch.c",
    "operators.c",
    "row_operators.c",
    "attention_operator.c",
    "product_operator.c",
    "width_operators.c",
    "weights_memory.c",
    "candidate_operator.c",
    "block_operator.c",
    "choosing.c",
)
VARIANT_FLAGS = {
    "generic": (),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4",),
    "vnni": ("-march=x86-64-v4", "-mavx512vnni"),
    "bf16": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
}
_AVX2 = frozenset({"avx2", "fma", "bmi2"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_VNNI = _AVX512 | {"avx512_vnni"}
NEEDED = {
    "bf16": _VNNI | {"avx512_bf16"},
    "vnni": _VNNI,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": frozenset[str](),
}
"""What a processor must have for each, best first, in the words of Linux; source/dispatch.c asks the same."""
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
)
COMPILE_TIMEOUT_S = 300.0
SCRATCH_PREFIX = "native-"
LEFT_AFTER_S = 3600.0
"""A scratch folder as old as this is of a compilation that was killed."""


class BuildError(Exception):
    """The library cannot be built here; the message says why."""


def variants() -> tuple[str, ...]:
    """The instruction sets compiled for this kind of machine; the library picks one at run time."""
    return tuple(VARIANT_FLAGS) if platform.machine() in {"x86_64", "AMD64"} else ("generic",)


def own_variant(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The instruction set that a library of all would choose here; None where the system does not tell."""
    flags = processor_flags(cpuinfo)
    return None if flags is None else next(name for name, needed in NEEDED.items() if needed <= flags)


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """What an x86-64 processor can do, in the words of Linux; None on others, and where the system does not tell."""
    if variants() == ("generic",):
        return None
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)


def library_name(only: str | None = None) -> str:
    digest = hashlib.sha256(repr((FLAGS, variants(), platform.machine())).encode())
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    name = f"libfenhe_ops-{digest.hexdigest()[:16]}.so"
    return name if only is None else f"{only}-{name}"


def find_library(cache_folder: Path) -> Path | None:
    """The library of exactly this source: shipped with the package, or made earlier for all processors or this one."""
    own = own_variant()
    places = [PACKAGE / library_name(), cache_folder / library_name()]
    places += [] if own is None else [cache_folder / library_name(own)]
    return next((library for library in places if library.is_file()), None)


def build_library(folder: Path, only: str | None = None) -> Path:
    """Compile into `folder`, atomically; with `only` one instruction set, which the processor must have.

    Raises: BuildError.
    """
    compiler, name = find_compiler(), library_name(only)
    logger.info("compiling operators compiler=%s folder=%s: once on this machine, takes some seconds", compiler, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH_PREFIX) as scratch:
            _remove_leftovers(folder, Path(scratch))
            return _compile(compiler, only, Path(scratch) / name).replace(folder / name)
    except OSError as error:
        raise BuildError(
            f"{folder / name} cannot be written: {reason_of(error)}; {FIX}, or compile ahead with "
            "`python -m engines.native`"
        ) from error


def _remove_leftovers(folder: Path, own: Path) -> None:
    for scratch in folder.glob(f"{SCRATCH_PREFIX}*/"):
        if scratch != own and time.time() - scratch.stat().st_mtime > LEFT_AFTER_S:
            shutil.rmtree(scratch, ignore_errors=True)


def _compile(compiler: str, only: str | None, target: Path) -> Path:
    """Compile into `target`, the objects beside it: instruction sets side by side, each takes seconds of a core."""
    names = variants_to_build(only)
    with ThreadPoolExecutor(usable_cores()) as pool:
        objects = list(pool.map(lambda name: _compile_variant(compiler, name, target.parent), names))
    choice = [] if only is None else [f"-DFENHE_ONLY={only}"]
    parts = [str(SOURCE / part) for part in PARTS]
    _run([compiler, *FLAGS, *choice, "-shared", "-o", str(target), *parts, *objects, "-lm"], target.parent)
    return target


def variants_to_build(only: str | None) -> tuple[str, ...]:
    return variants() if only is None else (only,)


def find_compiler() -> str:
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise BuildError(
        "no C compiler (cc, gcc or clang) on PATH; for faster CPU serving install one, or a wheel that has the "
        "operators (`make wheel`)"
    )


def _compile_variant(compiler: str, variant: str, scratch: Path) -> str:
    target = str(scratch / f"{variant}.o")
    flags = [*FLAGS, *VARIANT_FLAGS[variant], f"-DFENHE_VARIANT={variant}"]
    _run([compiler, *flags, "-c", str(SOURCE / "kernels.c"), "-o", target], scratch)
    return target


def _run(command: list[str], scratch: Path) -> None:
    """The compiler's own temporary files go into `scratch` too, which is removed however this ends."""
    environ = temporary_in(scratch)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, env=environ)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()[-500:]
        fix = f" while writing {scratch.parent}; {FIX}" if NO_SPACE in reason else ""
        raise BuildError(f"{command[0]} failed: {reason}{fix}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not finish: {error}") from error
