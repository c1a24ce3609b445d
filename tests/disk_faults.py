"""Folders in which the system refuses to write, and files it refuses to read, for root too, whom permissions do not
stop."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_refused: dict[Path, int] = {}
_unreadable: set[Path] = set()
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


def _deny(event: str, arguments: tuple[Any, ...]) -> None:
    is_opened = event == "open" and isinstance(arguments[0], str | os.PathLike)
    if _unreadable and is_opened and Path(arguments[0]) in _unreadable:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(arguments[0]))


sys.addaudithook(_refuse)
sys.addaudithook(_deny)


@contextlib.contextmanager
def refuse_writes(folder: Path, number: int = errno.EROFS) -> Iterator[None]:
    """Every write of this process below `folder` fails with this error."""
    _refused[folder] = number
    try:
        yield
    finally:
        del _refused[folder]


@contextlib.contextmanager
def refuse_reads(file: Path) -> Iterator[None]:
    """Every opening of this file by this process is denied."""
    _unreadable.add(file)
    try:
        yield
    finally:
        _unreadable.remove(file)
