"""`fenhe config check`: whether a server would start with a settings file, without starting it."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from server.config import load_config
from server.keys import check_exposure, load_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="report every mistake in a settings file and in the key file it names")
    check.add_argument("file", type=Path)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(check(arguments.file, environ))
    return 0


def check(file: Path, environ: Mapping[str, str]) -> str:
    """A line about a file that is sound, with this environment. Raises: ConfigError that lists what is not."""
    config = load_config({}, environ, file)
    keys = load_keys(config.keys)
    check_exposure(config, keys)
    students = ", ".join(one.name or (str(one.folder) if one.folder else "the default one") for one in config.student)
    return f"{file}: sound; listens on {config.host}:{config.port}, students: {students}, API keys: {len(keys)}"
