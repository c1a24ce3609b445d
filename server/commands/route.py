"""`fenhe route`: where a question would go and why, decided by a server or in this process."""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from models.building.default_student import find_student
from models.errors import Unavailable
from models.student.folder import Student
from models.student.manifest import Manifest
from router.conversation import Conversation
from router.decision import Health, Quality, RoutePreferences, StudentState
from router.language import find_language
from router.policy import needs_language, needs_task
from router.router import Router
from router.tasks import TASKS, Task
from server.commands.client import add_api_key, find_api_key, post
from server.settings.reading import load_config
from server.students.open_student import load_classifier
from server.wire.status import RouteReply

BAR_CHARS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="the question")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="ask a running server; without it, decide here")
    where.add_argument("--student", type=Path, metavar="DIR", help="decide for this student (default: the default one)")
    add_api_key(parser)
    parser.add_argument("--task", choices=TASKS, help="as if the request named this task")
    parser.add_argument(
        "--quality", choices=[quality.value for quality in Quality], help="as if the request asked for it"
    )
    parser.add_argument("--json", action="store_true", help="the answer of POST /v1/route itself")


def run(arguments: argparse.Namespace) -> int:
    if arguments.url is not None:
        api_key = find_api_key(arguments.api_key, os.environ)
        reply = ask_server(arguments.url, arguments.text, arguments.task, arguments.quality, api_key)
    else:
        reply = decide_here(arguments.text, arguments.student, arguments.task, arguments.quality, os.environ)
    print(show(reply, is_json=arguments.json))
    return 0


def ask_server(url: str, text: str, task: Task | None, quality: str | None, api_key: str | None = None) -> RouteReply:
    """Raises: ConfigError for the URL; BadRequest, Unauthorized, Unavailable."""
    preferences = {"task": task, "quality": quality}
    answer = post(url, "/v1/route", {"messages": [{"role": "user", "content": text}], "fenhe": preferences}, api_key)
    try:
        return msgspec.json.decode(answer, type=RouteReply)
    except msgspec.DecodeError:
        raise Unavailable(f"{url} answered, but not as this API does; is the URL right?") from None


def decide_here(
    text: str, folder: Path | None, task: Task | None, quality: str | None, environ: Mapping[str, str]
) -> RouteReply:
    """The decision for a student that is loaded and idle, with the router's settings of the environment.

    Raises: ConfigError, WeightsError.
    """
    from server.api.route import describe_route

    config = load_config({}, environ).router
    student = Student.open(folder or find_student(environ, report=lambda line: print(line, file=sys.stderr)))
    router = Router(load_classifier(config), config)
    preferences = RoutePreferences(task=task, quality=Quality(quality or Quality.BALANCED))
    num_tokens = len(_encode(student, text))
    router.classify(Conversation(last=""))  # the first one is slower than all others
    begun_s = time.perf_counter()
    scores = router.classify(Conversation(last=text)) if needs_task(preferences, num_students=1) else None
    language = find_language(text) if needs_language(preferences) else None
    candidates = router.choose(scores, preferences, [idle_state(student.manifest)])
    decision = router.decide(scores, preferences, num_tokens, candidates, language)
    seconds = time.perf_counter() - begun_s
    return describe_route(decision, scores, num_tokens, seconds)


def idle_state(manifest: Manifest) -> StudentState:
    """A student that is not served yet. Its precision is the one that was measured, if any was, and its head the cheap
    one if it has that at this precision."""
    variants = [
        *(figure.variant for figure in manifest.figures),
        *(figure.variant for figure in manifest.retention),
        *(variant.name for variant in manifest.variants),
        "",
    ]
    return StudentState(
        name=manifest.name,
        manifest=manifest,
        variant=variants[0],
        health=Health.READY,
        head=manifest.heads_at(variants[0])[-1],
    )


def _encode(student: Student, text: str) -> list[int]:
    template = student.tokenizer.chat_template
    rendered = text if template is None else template.render([{"role": "user", "content": text}])
    return student.tokenizer.encode(rendered)


def show(reply: RouteReply, *, is_json: bool) -> str:
    """The answer itself, or a table of the scores and the decision in words."""
    if is_json:
        return msgspec.json.format(msgspec.json.encode(reply), indent=2).decode()
    lines = _score_lines(reply.probabilities)
    lines.append(f"student {reply.student}, path {reply.path}, task {reply.task} ({reply.reason.value})")
    lines.append(f"{reply.head} head, language {reply.language or 'none'}")
    lines.append(f"{reply.num_prompt_tokens} prompt tokens, decided in {reply.decision_us:.0f} us")
    lines += [f"else: student {target.student}, path {target.path}" for target in reply.fallbacks]
    lines += [f"passed over: student {name}: {why}" for name, why in reply.skipped.items()]
    return "\n".join(lines)


def _score_lines(probabilities: dict[Task, float] | None) -> list[str]:
    if probabilities is None:
        return ["not classified"]
    ranked = sorted(probabilities.items(), key=lambda entry: -entry[1])
    return [f"{task:<9} {score:6.3f}  {'#' * round(score * BAR_CHARS)}".rstrip() for task, score in ranked]
