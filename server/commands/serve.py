"""`fenhe serve`: reads settings and students, starts loading the engines, and runs the server."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.errors import Problem
    from server.settings.config import ServerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from server.settings.help import ABOUT, add_settings

    parser.usage = "fenhe serve [-h] [--debug] [--config FILE] [--name NAME] [--SETTING VALUE ...] [MODEL]"
    parser.description = ABOUT
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="what to serve, as --student: a student folder, or a GGUF file or Hugging Face folder, which is built "
        "into the cache first (default: the default student)",
    )
    parser.add_argument("--name", help="what requests call the only student (default: its own name, or its file's)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML (or FENHE_CONFIG)")
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    _survive_hangup(_report)
    _end_when_told()
    from server.lifecycle.memory import collect_seldom, share_one_heap

    collect_seldom()
    share_one_heap(os.environ)  # before anything starts threads
    from models.building.cached_student import StudentCache
    from models.building.default_student import open_default
    from models.sources.fetch import cache_folder
    from server.context import make_context
    from server.http.listener import open_socket
    from server.lifecycle.settings_check import read_sound
    from server.students.open_student import load_classifier, make_opener, open_all
    from server.telemetry.logs import set_up_logging

    draft = partial(draft_settings, arguments)
    config, keys = read_sound(draft)
    set_up_logging(config)
    is_json = config.log_format == "json"
    report = logging.getLogger("fenhe").info if is_json else _report
    _survive_hangup(report)
    with open_socket(config) as listener:
        default = partial(
            open_default,
            os.environ,
            report,
            verify=config.verify_students,
            wanted=partial(_wanted, config),
        )
        cache = StudentCache(folder=cache_folder(os.environ), report=report, verify=config.verify_students)
        opener = make_opener(config.engine, default, verify=config.verify_students, environ=os.environ, cache=cache)
        classifier = load_classifier(config.router)
        students = open_all(config.student, opener)
        context = make_context(config, students, classifier=classifier, opener=opener, keys=keys, draft_config=draft)
        context.start_engines()  # they load while the web framework is imported
        try:
            from server.serve import serve

            names = [student.name for student in context.students]
            return serve(context, listener, announce=partial(_announce, names, is_json))
        finally:
            for student in context.students:
                student.engine.stop(0.0)


def _wanted(config: "ServerConfig") -> Sequence[str]:
    from server.students.built_student import default_precisions  # not for a server of remote students alone

    return default_precisions(config.engine)


def draft_settings(arguments: argparse.Namespace) -> "tuple[ServerConfig, list[Problem]]":
    """The settings, with the model and the name that the command line gives, and every mistake in them."""
    from models.errors import Problem
    from server.settings.fields import setting_names
    from server.settings.reading import draft_config

    flags = {name: getattr(arguments, name) for name in setting_names()}
    mistakes: list[Problem] = []
    if arguments.model is not None and flags["student"] is not None:
        mistakes.append(Problem(setting="student", said="--student and MODEL: two models; give one of them"))
    elif arguments.model is not None:
        flags["student"] = str(arguments.model)
    config, problems = draft_config(flags, os.environ, arguments.config)
    if arguments.name is not None:
        config, wrong = _with_name(config, arguments.name)
        mistakes += wrong
    return config, [*mistakes, *problems]


def _with_name(config: "ServerConfig", name: str) -> "tuple[ServerConfig, list[Problem]]":
    from models.errors import Problem
    from router.pool import name_problem

    if len(config.student) != 1:
        said = f"--name: there are {len(config.student)} students; give each a `name` in its [[student]] table"
        return config, [Problem(setting="student", said=said)]
    wrong = name_problem(name, [])
    if wrong is not None:
        return config, [Problem(setting="student", said=f"--name: {wrong}")]
    return replace(config, student=(replace(config.student[0], name=name),)), []


def _survive_hangup(report: Callable[[str], None]) -> None:
    """Ignore SIGHUP, which would end a server that is still loading; a running server reads its settings again."""
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, lambda *_: report("fenhe: SIGHUP ignored, the server is starting; send it again"))


def _end_when_told() -> None:
    """The first process of a container is not ended by SIGTERM unless it says so: a server that is still loading would
    be waited for, and then killed."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


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
