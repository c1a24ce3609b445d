"""The tasks requests are routed by."""

from typing import Literal, get_args

Task = Literal["math", "legal", "fact", "creative", "general"]
"""What a request is about; `general` when nothing fits or the classifier is unsure."""

TASKS: tuple[Task, ...] = get_args(Task)
GENERAL: Task = "general"
SUBJECTS: tuple[Task, ...] = ("math", "legal", "fact", "creative")
"""The tasks that have a subject: all but `general`."""
