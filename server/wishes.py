"""What a request itself says about its way: the model id, the `fenhe` object of the body, the x-fenhe-task header."""

from collections.abc import Sequence

from models.errors import InvalidParameter
from router.decision import Quality, Wishes
from router.tasks import TASKS, Task
from server.schema import FenheOptions
from server.student import NamedModel, ServedStudent, find_model

TASK_HEADER = "x-fenhe-task"


def wishes_of(
    students: Sequence[ServedStudent], model: str, options: FenheOptions | None, header: str | None
) -> Wishes:
    """`header` is the text of x-fenhe-task, None without one.

    Raises: UnknownModel; InvalidParameter for a task nobody knows, or for wishes that contradict each other.
    """
    options = options or FenheOptions()
    named = find_model(students, model)
    return Wishes(
        student=named.student,
        path=_path(named, options.path),
        task=_task(options.task, header),
        quality=options.quality or Quality.BALANCED,
    )


def _path(named: NamedModel, wished: str | None) -> str | None:
    if named.path is not None and wished is not None and named.path != wished:
        raise InvalidParameter(
            f"the model `{named.id}` and `fenhe.path` {wished[:200]!r} contradict each other; send one",
            param="fenhe.path",
        )
    return named.path or wished


def _task(wished: Task | None, header: str | None) -> Task | None:
    if header is None:
        return wished
    told = next((task for task in TASKS if task == header.strip().lower()), None)
    if told is None:
        raise InvalidParameter(
            f"the header {TASK_HEADER}: {header[:200]!r} is none of {', '.join(TASKS)}", param=TASK_HEADER
        )
    if wished not in (None, told):
        raise InvalidParameter(
            f"`fenhe.task` {wished!r} and the header {TASK_HEADER}: {told!r} contradict each other; send one",
            param="fenhe.task",
        )
    return told
