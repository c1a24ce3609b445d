"""Every subcommand of `fenhe` with its options, and what a command ends with."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.__main__ import COMMANDS as LOADTESTS
from loadtest.__main__ import make_parser as make_loadtest_parser
from server.commands.bench import BENCHES
from server.commands.cli import COMMANDS, main


class Parsed(Exception):
    """A parser that was about to read its arguments."""


def parser_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Parsed(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(Parsed) as caught:
            main(arguments)
    parser = caught.value.args[0]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def describe_commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    for name in COMMANDS:
        yield from _walk(f"fenhe {name}", _parser_of_command(name, parser_of([name], monkeypatch)))
    whole = parser_of([], monkeypatch)
    yield from _walk("fenhe", whole, is_deep=False)
    yield from _walk("fenhe bench", _parser_of_command("bench", whole))
    yield from _walk("fenhe router", parser_of(["router"], monkeypatch))
    for name in LOADTESTS:
        parser = _parser_of_command(name, make_loadtest_parser(name))
        yield from _walk(f"fenhe loadtest {name}", parser)
    for name in BENCHES:
        yield from _walk(f"fenhe bench {name}", parser_of(["bench", name], monkeypatch))


def _parser_of_command(name: str, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Of the subcommands only the named one knows its arguments."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = commands.choices[name]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def _walk(name: str, parser: argparse.ArgumentParser, *, is_deep: bool = True) -> Iterator[tuple[str, Any]]:
    options = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice, inner in action.choices.items() if is_deep else ():
                yield from _walk(f"{name} {choice}", inner)
        elif not isinstance(action, argparse._HelpAction):
            options[", ".join(action.option_strings) or action.dest] = _describe_option(action)
    yield name, options


def _describe_option(action: argparse.Action) -> dict[str, Any]:
    default = action.default
    told = {
        "action": type(action).__name__.strip("_").removesuffix("Action").removeprefix("Store").lower(),
        "type": None if action.type is None else getattr(action.type, "__name__", "?"),
        "default": default.name if isinstance(default, Path) else default,
        "choices": None if action.choices is None else list(action.choices),
        "nargs": action.nargs if action.nargs != 0 else None,
        "required": action.required or None,
    }
    return {key: value for key, value in told.items() if value not in (None, "", argparse.SUPPRESS)}


def describe_exit_statuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int | str | None]:
    sound, wrong = folder / "sound.toml", folder / "wrong.toml"
    sound.write_text("port = 1\n")
    wrong.write_text("prot = 1\n")
    commands = {
        "a version": ["--version"],
        "help": ["serve", "--help"],
        "no command": [],
        "an unknown command": ["nonsense"],
        "an unknown option": ["serve", "--nonsense"],
        "a file that is not there": ["inspect", str(folder / "nothing")],
        "sound settings": ["config", "check", str(sound)],
        "wrong settings": ["config", "check", str(wrong)],
        "serving with wrong settings": ["serve", "--config", str(wrong)],
        "an unknown bench": ["bench", "nonsense"],
        "a bench with a wrong case": ["bench", "engines", "--cases", "nonsense"],
    }
    statuses = {what: _exit_status(command) for what, command in commands.items()}
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", _interrupt)
        return {**statuses, "an interrupt": _exit_status(["serve"])}


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _exit_status(arguments: list[str]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code
