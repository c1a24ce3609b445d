"""The `fenhe` command: arguments, and one function per subcommand, which imports what it needs itself."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from models.errors import ConfigError, ServingError

DEFAULT_URL = "http://127.0.0.1:8000"
USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its errors are one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments
    try:
        if arguments[:1] == ["bench"]:
            return bench(arguments[1:])
        if arguments[:1] == ["router"]:
            return router(arguments[1:])
        parsed = _parse(arguments)
        status: int = parsed.run(parsed)
        return status
    except (ServingError, OSError) as error:
        if is_debug:
            raise
        print(f"fenhe: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Raises: ConfigError for options that do not exist, with those that were meant."""
    from server.settings.suggestions import did_you_mean

    parser = make_parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if not unknown:
        return parsed
    known: list[str] = []
    command = ""
    for commands in (action for action in parser._actions if isinstance(action, argparse._SubParsersAction)):
        command = next(name for name in arguments if name in commands.choices)
        known = [option for action in commands.choices[command]._actions for option in action.option_strings]
    options = [part.partition("=")[0] for part in unknown if part.startswith("-")]
    problems = [f"there is no option {option}{did_you_mean(option, known)}" for option in options]
    problems = problems or [f"what is {' '.join(unknown)!r}?"]
    raise ConfigError(*problems, f"see `fenhe {command} --help`")


def make_parser() -> argparse.ArgumentParser:
    from server.commands.bench import BENCHES
    from server.context import fenhe_version

    parser = argparse.ArgumentParser(prog="fenhe", description="Serve every request by the part of a model it needs.")
    parser.add_argument("--version", action="version", version=f"fenhe {fenhe_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    _add_serve(commands, debug)
    _add_chat(commands, debug)
    _add_route(commands, debug)
    _add_operator_commands(commands, debug)
    _add_model_commands(commands, debug)
    commands.add_parser("router", help="the task classifier: `fenhe router train`, `fenhe router eval`", add_help=False)
    commands.add_parser("bench", help=f"measure: `fenhe bench` with {', '.join(BENCHES)}", add_help=False)
    return parser


Commands = argparse._SubParsersAction


def _add_serve(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    from server.settings.help import ABOUT, add_settings

    usage = "fenhe serve [-h] [--debug] [--config FILE] [--SETTING VALUE ...]"
    parser = commands.add_parser(
        "serve", parents=[debug], help="serve students over HTTP", usage=usage, description=ABOUT
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML (or FENHE_CONFIG)")
    add_settings(parser)
    parser.set_defaults(run=serve)


def _add_operator_commands(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    from server.commands import config, keys

    parser = commands.add_parser("keys", parents=[debug], help="make API keys: `fenhe keys make NAME`")
    keys.add_arguments(parser)
    parser.set_defaults(run=keys.run)
    parser = commands.add_parser(
        "config", parents=[debug], help="look at settings: `fenhe config check FILE`, `fenhe config schema`"
    )
    config.add_arguments(parser)
    parser.set_defaults(run=check_config)


def _add_chat(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("chat", parents=[debug], help="talk to a server")
    parser.add_argument("prompt", nargs="?", help="one question; without it: a conversation")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"where the server is (default {DEFAULT_URL})")
    _add_api_key(parser)
    parser.add_argument("--model", default="auto", help="model id (default auto)")
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--temperature", type=float, default=0.0, help="default 0: the likeliest answer")
    parser.add_argument("--max-tokens", type=int, help="longest answer (default: as long as the context lasts)")
    parser.set_defaults(run=chat)


def _add_api_key(parser: argparse.ArgumentParser) -> None:
    from server.commands.chat import KEY_VARIABLES

    variables = " or ".join(KEY_VARIABLES)
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"the server's API key (or {variables}, which other users cannot see)"
    )


def _add_route(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    from router.decision import Quality
    from router.tasks import TASKS

    parser = commands.add_parser("route", parents=[debug], help="show where a question would go, and why")
    parser.add_argument("text", help="the question")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="ask a running server; without it, decide here")
    where.add_argument("--student", type=Path, metavar="DIR", help="decide for this student (default: the default one)")
    _add_api_key(parser)
    parser.add_argument("--task", choices=TASKS, help="as if the request had wished for this task")
    parser.add_argument("--quality", choices=[quality.value for quality in Quality], help="as if it had wished for it")
    parser.add_argument("--json", action="store_true", help="the answer of POST /v1/route itself")
    parser.set_defaults(run=route)


def _add_model_commands(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("pull", parents=[debug], help="fetch a model")
    parser.add_argument("name", help="smollm2-135m, or hf:ORG/NAME[@REVISION]")
    parser.set_defaults(run=pull)
    parser = commands.add_parser("build", parents=[debug], help="cut a model into a student folder")
    parser.add_argument("source", type=Path, help="a GGUF file or a Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="the student folder to write")
    parser.add_argument("--name", help="the student's name (default: from the source)")
    parser.add_argument("--modules", metavar="NAME:LAYERS,...", help="knowledge:9,reasoning:15,adapter:6, for example")
    parser.add_argument("--exits", type=Path, metavar="FILE", help="trained exits to build in; they say where to cut")
    parser.add_argument("--precision", metavar="NAME,...", help="variants to write (default: all that serving needs)")
    parser.set_defaults(run=build)
    parser = commands.add_parser("inspect", parents=[debug], help="show what a student folder holds")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="the manifest itself")
    parser.add_argument("--verify", action="store_true", help="compare every file with its SHA-256")
    parser.set_defaults(run=inspect)
    _add_eval(commands, debug)
    _add_distill(commands, debug)


def _add_distill(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    from server.commands.distill import add_arguments

    parser = commands.add_parser("distill", parents=[debug], help="train exits for a model and build it into a student")
    add_arguments(parser)
    parser.set_defaults(run=distill)


def _add_eval(commands: "Commands[argparse.ArgumentParser]", debug: argparse.ArgumentParser) -> None:
    from server.commands.eval import add_arguments

    parser = commands.add_parser("eval", parents=[debug], help="measure every path and precision of a student")
    add_arguments(parser)
    parser.set_defaults(run=evaluate)


def serve(arguments: argparse.Namespace) -> int:
    _survive_hangup(_report)
    from models.building.default_student import find_student
    from server.context import make_context
    from server.http.listener import open_socket
    from server.lifecycle.settings_check import read_sound
    from server.settings.fields import setting_names
    from server.settings.reading import draft_config
    from server.students.open_student import load_classifier, make_opener, open_all
    from server.telemetry.logs import set_up_logging

    flags = {name: getattr(arguments, name) for name in setting_names()}
    draft = partial(draft_config, flags, os.environ, arguments.config)
    config, keys = read_sound(draft)
    set_up_logging(config)
    is_json = config.log_format == "json"
    report = logging.getLogger("fenhe").info if is_json else _report
    _survive_hangup(report)
    with open_socket(config) as listener:
        opener = make_opener(config.engine, lambda: find_student(os.environ, report=report))
        classifier = load_classifier(config.router)
        students = open_all(config.student, opener)
        context = make_context(config, students, classifier=classifier, opener=opener, keys=keys, draft_config=draft)
        context.start_engines()  # they load while the web framework is imported
        try:
            from server.serve import serve as run_server

            names = [student.name for student in context.students]
            return run_server(context, listener, announce=partial(_announce, names, is_json))
        finally:
            for student in context.students:
                student.engine.stop(0.0)


def _survive_hangup(report: Callable[[str], None]) -> None:
    """Until there is a loop that reads settings again by it, SIGHUP would end a server that is still loading."""
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, lambda *_: report("fenhe: SIGHUP ignored, the server is starting; send it again"))


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _announce(students: list[str], is_json: bool, url: str) -> None:
    """Say where the server listens, on stdout, in the form that log lines have."""
    line = f"fenhe serves {', '.join(students)} at {url}/v1"
    if is_json:
        from server.telemetry.logs import JsonFormatter

        fields = {"url": f"{url}/v1", "students": students}
        record = {"name": "fenhe", "levelname": "INFO", "msg": "%s", "args": (line,), "fields": fields}
        line = JsonFormatter().format(logging.makeLogRecord(record))
    print(line, flush=True)


def check_config(arguments: argparse.Namespace) -> int:
    from server.commands.config import run

    return run(arguments, os.environ)


def chat(arguments: argparse.Namespace) -> int:
    from server.commands.chat import ChatOptions, converse, find_api_key

    options = ChatOptions(
        url=arguments.url,
        api_key=find_api_key(arguments.api_key, os.environ),
        model=arguments.model,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
        system=arguments.system,
    )
    return converse(options, arguments.prompt, sys.stdin, sys.stdout)


def route(arguments: argparse.Namespace) -> int:
    from server.commands.chat import find_api_key
    from server.commands.route import ask_server, decide_here, show

    if arguments.url is not None:
        api_key = find_api_key(arguments.api_key, os.environ)
        reply = ask_server(arguments.url, arguments.text, arguments.task, arguments.quality, api_key)
    else:
        reply = decide_here(arguments.text, arguments.student, arguments.task, arguments.quality, os.environ)
    print(show(reply, is_json=arguments.json))
    return 0


def pull(arguments: argparse.Namespace) -> int:
    from models.sources.fetch import cache_folder
    from models.sources.fetch import pull as fetch

    print(fetch(arguments.name, cache_folder(os.environ), show_progress=sys.stderr.isatty()))
    return 0


def build(arguments: argparse.Namespace) -> int:
    from models.building.build import build_student
    from models.graphs.precisions import DEFAULT_PRECISIONS

    wanted = arguments.precision
    manifest = build_student(
        arguments.source,
        arguments.out,
        name=arguments.name,
        modules=arguments.modules,
        precisions=DEFAULT_PRECISIONS if wanted is None else wanted.split(","),
        exits=arguments.exits,
        show_progress=sys.stderr.isatty(),
    )
    print(f"built {manifest.name} in {arguments.out}; see it with `fenhe inspect {arguments.out}`")
    full = manifest.full_path
    raw = [path.name for path in manifest.paths if path != full and not manifest.exit(path.exit).is_trained]
    if raw:
        print(f"the exits of {', '.join(raw)} are not trained: expect no sense from these paths before `fenhe distill`")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    from models.student.manifest import MANIFEST_NAME, read_manifest

    read_manifest(arguments.folder)
    if arguments.verify:
        from models.student.folder import Student

        Student.open(arguments.folder).verify()
        print("every file has the SHA-256 that the manifest names")
        return 0
    if arguments.json:
        sys.stdout.write((arguments.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return 0
    from models.student.inspect import describe

    print(describe(arguments.folder))
    return 0


def distill(arguments: argparse.Namespace) -> int:
    from server.commands.distill import run

    return run(arguments)


def evaluate(arguments: argparse.Namespace) -> int:
    from server.commands.eval import run

    return run(arguments)


def router(arguments: list[str]) -> int:
    """`fenhe router ...`: the rest of the line belongs to `router.training`."""
    from router.training.command import run

    status: int = run(arguments)
    return status


def bench(arguments: list[str]) -> int:
    """`fenhe bench ...`: the rest of the line belongs to that bench."""
    from server.commands.bench import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
