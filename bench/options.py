"""Options that the benches have in common, and the checks of them."""

import argparse
from collections.abc import Mapping
from pathlib import Path


def add_rounds(parser: argparse.ArgumentParser, default: int | None, about: str) -> None:
    parser.add_argument("--rounds", type=int, default=default, metavar="N", help=about)


def add_json(parser: argparse.ArgumentParser, metavar: str = "OUT") -> None:
    parser.add_argument("--json", type=Path, metavar=metavar, help="also write the figures here")


def add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", type=Path, metavar="DIR", help="student folder (default: in the cache)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", default="auto", help="what fenhe serves with (default auto)")


def add_debug(parser: argparse.ArgumentParser) -> None:
    """For `fenhe`, which looks for it itself; the bench only has to take it."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def find_too_small(options: argparse.Namespace, least: Mapping[str, int]) -> list[str]:
    """A sentence for each option that was given a number below its least one."""
    given = {name: getattr(options, name) for name in least}
    return [
        f"--{name} must be at least {least[name]}, not {number}"
        for name, number in given.items()
        if number is not None and number < least[name]
    ]


def find_unwritable(json: Path | None) -> list[str]:
    """A sentence when `--json` names a file in a folder that does not exist."""
    if json is None or json.absolute().parent.is_dir():
        return []
    return [f"--json {json}: no such folder"]
