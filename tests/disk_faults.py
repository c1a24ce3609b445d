"""Folders in which the system refuses to write, for root too, whom permissions do not stop."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_refused: dict[Path, int] = {}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.chmod", "os.symlink", "os.link"}


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refused or (event != "open" and event not in _CHANGES) or not isinstance(arguments[0], str | os.PathLike):
        return
    file = Path(arguments[0])
    if event == "open" and not arguments[2] & _WRITING:
        return
    if event == "os.mkdir" and file.exists():  # the system says so first
        return
    for folder, number in _refused.items():
        if file.is_relative_to(folder):
            raise OSError(number, os.strerror(number), str(file))


sys.addaudithook(_refuse)


@contextlib.contextmanager
def refuse_writes(folder: Path, number: int = errno.EROFS) -> Iterator[None]:
    """Every write of this process below `folder` fails with this error."""
    _refused[folder] = number
    try:
        yield
    finally:
        del _refused[folder]
