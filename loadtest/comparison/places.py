"""Which cores and which model a measurement uses, from the command line."""

import argparse
import os
import sys
from pathlib import Path

from loadtest.comparison.servers import Place

STUDENT = "smollm2-135m"


def add_core_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server-cores", metavar="LIST", help="such as 0,1 (default: all but the last)")
    parser.add_argument("--generator-cores", metavar="LIST", help="default: the last")


def cores_of(options: argparse.Namespace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the server and of the generator. Raises: ValueError."""
    here = sorted(os.sched_getaffinity(0))
    server = _cores(options.server_cores, here) or tuple(here[:-1]) or tuple(here)
    return server, _cores(options.generator_cores, here) or (here[-1],)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    add_core_options(parser)
    parser.add_argument("--student", type=Path, metavar="DIR", help="default: the default student in the cache")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the same model for peers (default: in the cache)")
    parser.add_argument(
        "--peers-python",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a Python with the peers, or with that of this name (default: this one)",
    )


def place_of(options: argparse.Namespace, folder: Path) -> Place:
    """Raises: ValueError, FileNotFoundError."""
    server, generator = cores_of(options)
    cache = Path(os.environ.get("FENHE_CACHE") or Path.home() / ".cache" / "fenhe")
    student = options.student or cache / "students" / STUDENT
    if not (student / "manifest.json").is_file():
        raise FileNotFoundError(
            f"{student} is no student: `fenhe serve` once builds the default one, or give --student"
        )
    gguf = options.gguf or next(iter(sorted((cache / STUDENT).glob("*.gguf"))), None)
    if options.gguf is not None and not options.gguf.is_file():
        raise FileNotFoundError(f"--gguf {options.gguf}: there is no such file")
    named = [given.partition("=") for given in options.peers_python]
    pythons = {name: file for name, sign, file in named if sign}
    others = [name for name, sign, _ in named if not sign]
    return Place(
        server_cores=server,
        generator_cores=generator,
        folder=folder,
        student=student,
        gguf=gguf,
        peers_python=others[-1] if others else sys.executable,
        pythons=pythons,
    )


def _cores(text: str | None, here: list[int]) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"cores are numbers with commas, not {text!r}") from None
    if not set(found) <= set(here):
        raise ValueError(f"this process may use the cores {', '.join(map(str, here))}, not all of {text}")
    return found
