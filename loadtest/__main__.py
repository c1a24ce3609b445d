"""`python -m loadtest`, which is what `fenhe loadtest` runs: load tests of a server, and comparisons of servers."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": ("generator.run", "put load on a running server"),
    "compare": ("comparison.compare", "fenhe beside other servers, on the same cores"),
    "overhead": ("overhead", "what the server itself adds, on an engine with set times"),
    "growth": ("growth", "how time and memory grow with users and with the length of prompts"),
    "agree": ("agreement", "our figures beside those of vllm bench serve, aiperf and guidellm"),
    "coldstart": ("coldstart", "from the start of the process to the first token"),
}
"""Each command's module below this package and what it does. A module has `add_arguments(parser)` and `run(options)`,
which returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = make_parser(next((word for word in given if word in COMMANDS), None)).parse_args(given)
    status: int = options.run(options)
    return status


def make_parser(named: str | None) -> argparse.ArgumentParser:
    """It lists every command and knows the options of the named one."""
    parser = argparse.ArgumentParser(prog="fenhe loadtest", description="Measure what a server's users see.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about)
        if name == named:
            chosen = importlib.import_module(f"{__package__}.{module}")
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
