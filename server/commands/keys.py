"""`fenhe keys`: make an API key, or the hash of one."""

import argparse
import sys
from typing import TextIO

from models.errors import ConfigError
from server.access.keys import HTTP_BLANKS, describe_entry, make_secret

LEAST_CHARS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    make = actions.add_parser("make", help="make a key: its table on stdout (`>> keys.toml`), itself on stderr")
    make.add_argument("name", help="what logs call it; also its tenant, unless the table names one")
    make.set_defaults(act=_make)
    digest = actions.add_parser("hash", help="the table of a key that is read from stdin")
    digest.add_argument("name", help="what logs call it")
    digest.set_defaults(act=_hash)


def run(arguments: argparse.Namespace) -> int:
    status: int = arguments.act(arguments.name, sys.stdin, sys.stdout, sys.stderr)
    return status


def _make(name: str, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """The key goes to stderr, so that it never ends up in the file that the table is appended to."""
    key = make_secret()
    print(f"{describe_entry(name, key)}\n", file=stdout)
    print(f"the key, shown this once; give it to the client and keep it nowhere else:\n{key}", file=stderr)
    return 0


def _hash(name: str, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    key = _read_key(stdin)
    if not key:
        raise ConfigError("there is no key on stdin: echo $KEY | fenhe keys hash NAME")
    entry = describe_entry(name, key)
    if len(key) < LEAST_CHARS:
        print(
            f"warning: this key has {len(key)} characters; fewer than {LEAST_CHARS} random ones can be guessed from "
            "their hash; `fenhe keys make NAME` makes a safe one",
            file=stderr,
        )
    print(f"{entry}\n", file=stdout)
    return 0


def _read_key(stdin: TextIO) -> str:
    """The first line, without the blanks around it: those that a header loses too."""
    try:
        return stdin.readline().strip(f"{HTTP_BLANKS}\r\n")
    except UnicodeDecodeError:
        raise ConfigError("the key on stdin is not UTF-8 text: `fenhe keys make NAME` makes one that is") from None
