"""The `fenhe` command: finds the subcommand, reads its arguments and turns its errors into an exit status.

Only the module of the subcommand that was named is imported, so `fenhe --help` loads no model code.
"""

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from types import ModuleType

from models.errors import ConfigError, ServingError

USAGE_ERROR = 2
INTERRUPTED = 130
READER_GONE = 141
"""As shells have it for SIGPIPE."""

COMMANDS = {
    "serve": "serve students over HTTP",
    "chat": "talk to a server",
    "completion": "make the TAB key complete `fenhe` in bash, zsh or fish",
    "simulate": "serve a student without a model, which answers at set times",
    "route": "show where a question would go, and why",
    "keys": "make API keys: `fenhe keys make NAME`",
    "config": "look at settings: `fenhe config check FILE`, `fenhe config schema`",
    "pull": "fetch a model",
    "build": "cut a model into a student folder",
    "inspect": "show what a student folder holds",
    "export": "write a student's tokenizer and configuration for other tools",
    "eval": "measure every path and precision of a student",
    "head": "fit a cheap head to a model, for `fenhe build --head`",
    "distill": "train exits for a model and build it into a student",
}
"""What each subcommand does, in the order of the help text. Its module has `add_arguments(parser)`, and
`run(arguments)`, which returns the exit status."""
LOADTESTS = ("run", "compare", "overhead", "growth", "coldstart", "agree")
WHOLE_LINE = ("router", "bench", "loadtest")
"""The subcommands with commands of their own: `run(arguments)` of their modules takes the rest of the line unread."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its errors are one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", ""))
    is_debug = "--debug" in arguments
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except (ServingError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _is_reader_gone():
            return READER_GONE
        if is_debug:
            raise
        print(f"fenhe: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _is_reader_gone() -> bool:
    """Whether nobody reads stdout any more, as after `fenhe inspect DIR | head`; what is left is dropped then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_gone = any(events & select.POLLERR for _, events in poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone


def _run(arguments: list[str]) -> int:
    status: int
    if arguments and arguments[0] in WHOLE_LINE:
        status = _module(arguments[0]).run(arguments[1:])
    else:
        parsed = _parse(arguments)
        status = parsed.run(parsed)
    return status


def _complete(line: str) -> None:
    """Answer the shell, which asks what may stand at its cursor; see `server.commands.completion`."""
    from server.commands.completion import complete, words_of

    complete(make_parser(_named(words_of(line)))[0])


def _named(arguments: Sequence[str]) -> str | None:
    return next((name for name in arguments if name in (*COMMANDS, *WHOLE_LINE)), None)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"server.commands.{command}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Raises: ConfigError for options that do not exist, naming those that were meant."""
    from server.settings.suggestions import did_you_mean

    command = _named(arguments)
    parser, options = make_parser(command)
    parsed, unknown = parser.parse_known_args(arguments)
    if not unknown:
        return parsed
    given = [part.partition("=")[0] for part in unknown if part.startswith("-")]
    problems = [f"there is no option {option}{did_you_mean(option, options)}" for option in given]
    problems = problems or [f"{' '.join(unknown)!r} is more than it takes; a text of several words needs quotes"]
    raise ConfigError(*problems, f"see `fenhe {command} --help`")


def make_parser(named: str | None) -> tuple[argparse.ArgumentParser, list[str]]:
    """A parser that lists every subcommand and knows the arguments of the named one, and that one's options."""
    from server.commands.bench import BENCHES
    from server.version import fenhe_version

    parser = argparse.ArgumentParser(prog="fenhe", description="Serve every request by the part of a model it needs.")
    parser.add_argument("--version", action="version", version=f"fenhe {fenhe_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    options: list[str] = []
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about)
        if name == named:
            _fill(command, _module(name))
            options = [option for action in command._actions for option in action.option_strings]
    for name, about, names in (
        ("router", "the task classifier: `fenhe router train`, `fenhe router eval`", ("train", "eval")),
        ("bench", f"measure: `fenhe bench` with {', '.join(BENCHES)}", tuple(BENCHES)),
        ("loadtest", "put load on a server, compare servers: `fenhe loadtest run`", LOADTESTS),
    ):
        commands.add_parser(name, help=about, add_help=False).add_argument(name, choices=names)
    return parser, options


def _fill(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)


if __name__ == "__main__":
    sys.exit(main())
