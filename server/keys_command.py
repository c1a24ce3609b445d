"""`fenhe keys`: make an API key, or the hash of one."""

import argparse
import sys
from typing import TextIO

from models.errors import ConfigError
from server.keys import describe_entry, make_secret


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    make = actions.add_parser("make", help="make a key: it goes to the client, the table into the key file")
    make.add_argument("name", help="what logs call it")
    make.set_defaults(act=_make)
    digest = actions.add_parser("hash", help="the table of a key that is read from stdin")
    digest.add_argument("name", help="what logs call it")
    digest.set_defaults(act=_hash)


def run(arguments: argparse.Namespace) -> int:
    status: int = arguments.act(arguments.name, sys.stdin, sys.stdout)
    return status


def _make(name: str, stdin: TextIO, stdout: TextIO) -> int:
    key = make_secret()
    table = describe_entry(name, key)
    print(f"# shown once: give this key to the client, and keep it nowhere else\n# {key}\n{table}", file=stdout)
    return 0


def _hash(name: str, stdin: TextIO, stdout: TextIO) -> int:
    key = stdin.readline().strip()
    if not key:
        raise ConfigError("there is no key on stdin: echo $KEY | fenhe keys hash NAME")
    print(describe_entry(name, key), file=stdout)
    return 0
