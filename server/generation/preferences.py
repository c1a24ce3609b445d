"""What a request says about where it should go: the model, the `fenhe` object of the body, the x-fenhe-task header."""

from collections.abc import Sequence
from dataclasses import replace

from models.errors import InvalidParameter
from router.decision import Quality, RoutePreferences
from router.tasks import TASKS, Task
from server.generation.prompts import TextPrompt
from server.students.student import NamedModel, ServedStudent, find_model
from server.wire.base import FenheOptions

TASK_HEADER = "x-fenhe-task"


def preferences_of(
    students: Sequence[ServedStudent], model: str, options: FenheOptions | None, headers: Sequence[str]
) -> RoutePreferences:
    """`headers` are the values of all x-fenhe-task headers.

    Raises: UnknownModel; InvalidParameter for an unknown task, or for preferences that contradict each other.
    """
    options = options or FenheOptions()
    named = find_model(students, model)
    path = _path(named, options.path)
    if options.quality is Quality.FULL:
        _check_full(students, named.student, path, options.while_loading)
    return RoutePreferences(
        student=named.student,
        path=path,
        task=_task(options.task, _header(headers)),
        quality=options.quality or Quality.BALANCED,
        priority=options.priority,
        cache=options.cache,
        online_quality=options.online_quality,
    )


def preferences_for_prompts(
    students: Sequence[ServedStudent], preferences: RoutePreferences, prompts: Sequence[TextPrompt]
) -> RoutePreferences:
    """Unless a student is named, token ids are the first one's, as in /tokenize: to others they mean nothing."""
    has_ids = any(not isinstance(prompt, str) for prompt in prompts)
    if preferences.student is None and len(students) > 1 and has_ids:
        return replace(preferences, student=students[0].name)
    return preferences


def _check_full(
    students: Sequence[ServedStudent], student: str | None, path: str | None, while_loading: str | None
) -> None:
    """Refuse what contradicts `quality: full`: a path that is not the full one, or degrading to one."""
    manifests = [one.manifest for one in students if student in (None, one.name)]
    having = [one for one in manifests if any(path == other.name for other in one.paths)]
    if any(one.full_path.name != path for one in having):
        raise InvalidParameter(
            f"`fenhe.quality` 'full' and the path {path!r} contradict each other; send one", param="fenhe.quality"
        )
    if while_loading == "degrade":
        raise InvalidParameter(
            "`fenhe.quality` 'full' and `fenhe.while_loading` 'degrade' contradict each other; send one",
            param="fenhe.while_loading",
        )


def _header(headers: Sequence[str]) -> str | None:
    """The value that all x-fenhe-task headers agree on, None without any. Raises: InvalidParameter."""
    distinct = {header.strip().lower() for header in headers}
    if len(distinct) > 1:
        listed = ", ".join(repr(header[:200]) for header in headers[:4])
        raise InvalidParameter(f"the headers {TASK_HEADER} contradict each other: {listed}", param=TASK_HEADER)
    return headers[0] if headers else None


def _path(named: NamedModel, wanted: str | None) -> str | None:
    if named.path is not None and wanted is not None and named.path != wanted:
        raise InvalidParameter(
            f"the model `{named.id}` and `fenhe.path` {wanted[:200]!r} contradict each other; send one",
            param="fenhe.path",
        )
    return named.path or wanted


def _task(wanted: Task | None, header: str | None) -> Task | None:
    if header is None:
        return wanted
    named = next((task for task in TASKS if task == header.strip().lower()), None)
    if named is None:
        raise InvalidParameter(
            f"the header {TASK_HEADER}: {header[:200]!r} is none of {', '.join(TASKS)}", param=TASK_HEADER
        )
    if wanted not in (None, named):
        raise InvalidParameter(
            f"`fenhe.task` {wanted!r} and the header {TASK_HEADER}: {named!r} contradict each other; send one",
            param="fenhe.task",
        )
    return named
