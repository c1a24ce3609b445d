"""The named figures of a comparison: ratios between servers, each from medians over the rounds."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from loadtest.comparison.stages import Findings

AIMS = {
    "goodput_routed_vs_one_at_a_time": 4.0,
    "goodput_routed_vs_best_peer": 3.0,
    "goodput_routed_vs_llama_cpp_server": None,
    "goodput_full_vs_best_peer": 1.5,
    "short_prompt_speedup": 1 / 0.71,
    "concurrency_vs_one_at_a_time": 5.0,
    "concurrency_vs_full": 1.3,
    "success_rate": 0.999,
    "added_p99_ms_64": 5.0,
}
"""What each should reach; of `added_p99_ms_64` what it may be at most."""
MEANINGS = {
    "goodput_routed_vs_one_at_a_time": "knee of routed / knee of one-at-a-time",
    "goodput_routed_vs_best_peer": "knee of routed / highest knee of a peer that batches",
    "goodput_routed_vs_llama_cpp_server": "knee of routed / knee of llama_cpp.server, which answers one at a time",
    "goodput_full_vs_best_peer": "knee of full-uncached / highest knee of a peer that batches",
    "short_prompt_speedup": "median E2EL of all-full / of routed, prompts up to 128 tokens, no cache, median of blocks",
    "short_prompt_speedup_of_path": "the same against the full path with the head that it has by default",
    "concurrency_vs_one_at_a_time": "most users within the SLO, routed / one-at-a-time",
    "concurrency_vs_full": "most users within the SLO, routed / full",
    "success_rate": "of routed at its knee",
    "added_p99_ms_64": "what the server adds to a scripted engine's times at 64 streams, p99",
    "cold_start_first_token_s": "process start to first token on the quickest path",
    "cold_start_all_loaded_s": "process start to the first token on the full path",
}


def figures(
    servers: Mapping[str, Findings],
    short: Mapping[str, Any] | None,
    overhead: Mapping[str, Any] | None,
    cold: Mapping[str, Any] | None,
) -> tuple[dict[str, float], list[str]]:
    """The figures that can be told, and for the others why not."""
    found: dict[str, float] = {}
    notes: list[str] = []
    knees = {name: one.knee for name, one in servers.items()}
    peers = {name: knee for name, one in servers.items() if one.role == "peer" and one.batches and (knee := one.knee)}
    best = max(peers, key=lambda name: peers[name], default=None)
    concurrencies = {name: one.concurrency for name, one in servers.items()}
    for name, above, below in (
        ("goodput_routed_vs_one_at_a_time", knees.get("routed"), knees.get("one-at-a-time")),
        ("goodput_routed_vs_best_peer", knees.get("routed"), peers.get(best or "")),
        ("goodput_routed_vs_llama_cpp_server", knees.get("routed"), knees.get("llama-cpp-server")),
        ("goodput_full_vs_best_peer", knees.get("full-uncached"), peers.get(best or "")),
        ("concurrency_vs_one_at_a_time", concurrencies.get("routed"), concurrencies.get("one-at-a-time")),
        ("concurrency_vs_full", concurrencies.get("routed"), concurrencies.get("full")),
    ):
        if above is None or below is None:
            notes.append(f"{name}: one of the two was not measured")
        elif below == 0:
            notes.append(f"{name}: the second keeps the SLO at no load that was tried, so there is no ratio")
        else:
            found[name] = above / below
    notes += [f"the best peer that batches is {best}"] if best else []
    found |= dict(_at_the_knee(servers))
    if short and short["speedups"]:
        found["short_prompt_speedup"] = median(short["speedups"])
        found["short_prompt_speedup_of_path"] = median(short["speedups_of_path"])
    if overhead and "64" in overhead:
        found["added_p99_ms_64"] = overhead["64"]["p99_added_ms"]
    if cold:
        found |= {f"cold_start_{name}": median(cold[name]) for name in ("first_token_s", "all_loaded_s")}
    return found, notes


def _at_the_knee(servers: Mapping[str, Findings]) -> Iterator[tuple[str, float]]:
    routed = servers.get("routed")
    if routed is None or not routed.knee:
        return
    kept = [point for point in routed.sweep if point.counts and (point.rate or 0.0) <= routed.knee * 1.001]
    if kept:
        yield "success_rate", max(kept, key=lambda point: point.rate or 0.0).figures["success_rate"]


def table(servers: Mapping[str, Findings]) -> Iterator[str]:
    yield f"{'server':<18}{'knee, requests/s':>18}{'users within SLO':>18}{'tokens/s, most':>16}{'MiB':>8}"
    for name, one in servers.items():
        if one.absent is not None:
            yield f"{name:<18}absent: {one.absent}"
            continue
        most = max((point.figures.get("output_throughput", 0.0) for point in one.ladder), default=0.0)
        memory = max((point.resident_mib for point in (*one.ladder, *one.sweep)), default=0.0)
        knee = "-" if one.knee is None else f"{one.knee:.2f}{_spread(one.knees)}"
        users = "-" if one.concurrency is None else f"{one.concurrency:.0f}"
        yield f"{name:<18}{knee:>18}{users:>18}{most:>16.0f}{memory:>8.0f}"


def _spread(values: list[float]) -> str:
    return f" ({min(values):.2f}..{max(values):.2f})" if len(values) > 1 else ""


def verdicts(found: Mapping[str, float]) -> Iterator[str]:
    for name, value in found.items():
        aim = AIMS.get(name)
        if aim is None:
            yield f"{name:<38}{value:8.3g}"
            continue
        is_upper = name.endswith("_ms_64")
        is_reached = value <= aim if is_upper else value >= aim
        side = "at most" if is_upper else "at least"
        yield f"{name:<38}{value:8.3g}   aim {side} {aim:.3g}: {'reached' if is_reached else 'missed'}"
