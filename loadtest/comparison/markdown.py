"""A comparison as Markdown, for docs/performance.md: figures with their aims, servers, ablation, and where it was
taken."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from loadtest.comparison.figures import AIMS, MEANINGS
from loadtest.comparison.stages import Findings


def markdown(document: Mapping[str, Any], servers: Mapping[str, Findings]) -> str:
    machine, versions = document["machine"], document["versions"]
    where = f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_1min']} at the end, {machine['date']}"
    command = f"fenhe loadtest {' '.join(document['command'])}"
    parts = [
        f"`{command}`; {where}; {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        _table(("figure", "aim", "found", "meaning"), _figures(document["figures"])),
        _table(("server", "knee, requests/s", "users within the SLO", "tokens/s, most", "MiB"), _servers(servers)),
        _table(("ablation", "tokens/s", "p95 TTFT, ms", "p95 TPOT, ms"), _ablation(servers)),
        "\n".join(f"- {note}" for note in document["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Nothing where there is no row."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *body]) if body else ""


def _figures(found: Mapping[str, float]) -> Iterator[Sequence[str]]:
    for name, value in found.items():
        aim = AIMS.get(name)
        yield f"`{name}`", "" if aim is None else f"{aim:.3g}", f"**{value:.3g}**", MEANINGS.get(name, "")


def _servers(servers: Mapping[str, Findings]) -> Iterator[Sequence[str]]:
    for name, one in servers.items():
        if one.absent is not None:
            yield f"`{name}`", f"absent: {one.absent}", "", "", ""
        elif one.ladder or one.sweep:
            knee = "" if one.knee is None else f"{one.knee:.2f} ({min(one.knees):.2f} .. {max(one.knees):.2f})"
            users = "" if one.concurrency is None else f"{one.concurrency:.0f}"
            most = max((point.figures.get("output_throughput", 0.0) for point in one.ladder), default=0.0)
            memory = max(point.resident_mib for point in (*one.ladder, *one.sweep))
            yield f"`{name}`", knee, users, f"{most:.0f}", f"{memory:.0f}"


def _ablation(servers: Mapping[str, Findings]) -> Iterator[Sequence[str]]:
    for name, one in servers.items():
        if one.ablation:
            names = ("output_throughput", "p95_ttft_ms", "p95_tpot_ms")
            cells = [mean(point.figures.get(figure, 0.0) for point in one.ablation) for figure in names]
            yield f"`{name}`", *(f"{cell:.0f}" for cell in cells)
