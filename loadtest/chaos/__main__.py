"""`python -m loadtest.chaos`: attacks a server of its own, prints what came of each, and fails on any regression.

A gap is the longest wait of a client that asks for `/health` every 3 ms; it fails above 50 ms and five times the idle
control. Memory, but for what bounded caches hold, must be back within 10 % of what it was, 30 s later.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from loadtest.chaos.attack import Attack, Observation
from loadtest.chaos.bodies import BODIES
from loadtest.chaos.framing import FRAMING
from loadtest.chaos.limits import at_limits, bodies_of, send_body
from loadtest.chaos.processes import own_servers
from loadtest.chaos.sharing import SHARING
from loadtest.chaos.trial import attempt, trial
from loadtest.chaos.verdict import MIB, Row, judge
from loadtest.served import folder_until_the_end

SIZES_KB = (1, 4, 16, 64, 256, 1024, 1950)
HEADINGS = ("attack", "expected", "seen", "gap", "x idle", "MiB before", "peak", "after", "of it in caches", "verdict")
AFTER_LIMITS = Attack(name="after the limits", expected="memory is back", run=lambda target: Observation(), rules=())


def all_rows(student: Path | None, folder: Path, only: str = "") -> Iterator[Row]:
    """`only` is a pattern of the attacks' names."""
    with trial(student, folder / "server.log") as one:
        for attack in _chosen((*FRAMING, *BODIES, *SHARING), only):
            yield one.run(attack)
        limits = _chosen(at_limits(), only)
        if limits:
            yield from one.run_group(limits, AFTER_LIMITS)
        for attack in _chosen(own_servers(student), only):
            begun_s = time.monotonic()
            seen = attempt(attack, one.target)
            yield judge(attack, seen, seconds=time.monotonic() - begun_s)
        yield one.end()


def _chosen(attacks: Sequence[Attack], only: str) -> list[Attack]:
    return [attack for attack in attacks if re.search(only, attack.name)]


def gap_rows(student: Path | None, folder: Path, only: str = "") -> Iterator[Row]:
    """Every endpoint with bodies of growing size."""
    with trial(student, folder / "server.log") as one:
        for size in SIZES_KB:
            bodies = {name: sent for name, sent in bodies_of(size * 1000).items() if re.search(only, name)}
            for name, (path, body) in bodies.items():
                run = partial(send_body, path, body)
                attack = Attack(name=f"{size} kB to {name}", expected="the loop goes on", run=run, rules=())
                yield one.run(attack, waits=False)


def cells(row: Row) -> list[str]:
    gap, memory = row.gap, row.memory
    return [
        row.name,
        row.expected,
        row.seen,
        "" if gap is None else f"{gap.longest_ms:.0f} ms",
        "" if gap is None else f"{gap.longest_ms / max(gap.control_ms, 0.1):.1f}",
        "" if memory is None else str(memory.before // MIB),
        "" if memory is None else str(memory.peak // MIB),
        "" if memory is None else f"{memory.after // MIB} ({memory.waited_s:.0f} s)",
        "" if memory is None else f"{memory.cached_before / MIB:.1f}, {memory.cached_after / MIB:.1f}",
        "; ".join((row.verdict, *row.problems)),
    ]


def line(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"


def run(rows: Iterator[Row], json_file: Path | None) -> int:
    """Prints each row as it comes. Returns 0 when none failed."""
    begun_s, done = time.monotonic(), []
    print(line(HEADINGS), line("---" for _ in HEADINGS), sep="\n", flush=True)
    for row in rows:
        done.append(row)
        print(line(cells(row)), flush=True)
    failed = [row.name for row in done if row.problems]
    print(f"\n{len(done)} attacks in {time.monotonic() - begun_s:.0f} s, failed: {', '.join(failed) or 'none'}")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) | {"verdict": row.verdict} for row in done], indent=1))
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=__doc__)
    parser.add_argument("--student", type=Path, default=None, metavar="DIR", help="default: the default student")
    parser.add_argument("--gaps", action="store_true", help="only the gap of every endpoint by size of the body")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only what has this in its name")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows here too")
    given = parser.parse_args()
    make = gap_rows if given.gaps else all_rows
    with folder_until_the_end("fenhe-chaos-") as folder:
        return run(make(given.student, folder, given.only), given.json)


if __name__ == "__main__":
    sys.exit(main())
