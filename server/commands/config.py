"""`fenhe config`: check a settings file without starting a server, and print the schema of such files."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from models.building.cached_student import name_at
from models.errors import ConfigError, Problem, WeightsError
from models.student.manifest import read_manifest
from router.pool import name_problem
from server.lifecycle.settings_check import collect, look_over
from server.quality.pins import pin_problems
from server.settings.config import ServerConfig, StudentConfig
from server.settings.reading import draft_config
from server.settings.schema import settings_schema
from server.students.open_student import load_classifier

MISTAKEN = 2
"""The exit status for a file with mistakes, as for any other error of `fenhe`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="report every mistake in a settings file and in the files it names")
    check.add_argument("file", type=Path)
    check.set_defaults(act=run_check)
    schema = actions.add_parser("schema", help="print the JSON Schema of a settings file")
    schema.set_defaults(act=run_schema)


def run(arguments: argparse.Namespace) -> int:
    status: int = arguments.act(arguments)
    return status


def run_schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(settings_schema(), indent=2))
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """Print what was found: a line per mistake, on stderr."""
    try:
        print(check(arguments.file, os.environ))
    except ConfigError as error:
        lines = [f"{arguments.file}: number of mistakes: {len(error.problems)}", *map(str, error.problems)]
        print("\n  ".join(lines), file=sys.stderr)
        return MISTAKEN
    return 0


def check(file: Path, environ: Mapping[str, str]) -> str:
    """Check the settings in this environment, the packages they need, the key file, the students' folders and the
    classifier; return a line that sums them up. Raises: ConfigError that lists every mistake."""
    config, problems = draft_config({}, environ, file)
    keys = look_over(config, problems)
    reported = {
        known for problem in problems for known in (problem.setting, problem.said)
    }  # a student's name may be among them
    for problem in _student_problems(config.student):
        if reported.isdisjoint({problem.setting, problem.said}):
            problems.append(problem)
            reported.add(problem.said)
    problems += _pin_problems(config)
    collect(lambda: load_classifier(config.router), problems)
    if problems:
        raise ConfigError(*problems)
    students = ", ".join(one.name or (str(one.folder) if one.folder else "the default one") for one in config.student)
    return f"{file}: sound; listens on {config.host}:{config.port}, students: {students}, API keys: {len(keys)}"


def _student_problems(students: Sequence[StudentConfig]) -> Iterator[Problem]:
    """The default student is not checked: it is fetched and built when a server starts. Of models that are no student
    yet all but the weights is read."""
    names: list[str] = []
    for index, student in enumerate(students):
        if student.folder is None:
            continue
        try:
            own_name = name_at(student.folder)
        except (ConfigError, WeightsError, OSError) as error:
            yield Problem(setting=f"student[{index}].folder", said=str(error))
            continue
        name = student.name or own_name
        problem = name_problem(name, names)
        if problem is not None:
            yield Problem(setting=f"student[{index}].name", said=problem)
        names.append(name)


def _pin_problems(config: ServerConfig) -> Iterator[Problem]:
    """Only where every student is a folder that can be read: what paths others have shows when a server starts."""
    try:
        manifests = [None if one.folder is None else read_manifest(one.folder) for one in config.student]
    except (ConfigError, OSError):
        return
    known = {str(index): manifest for index, manifest in enumerate(manifests) if manifest is not None}
    if len(known) == len(manifests):
        yield from pin_problems(config.online_quality, known)
