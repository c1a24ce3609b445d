"""Writing files so that a full disk leaves nothing behind, and the error names the file and what to do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
NO_SPACE = os.strerror(errno.ENOSPC)
FIX = "make room there or make it writable, or choose another folder (FENHE_CACHE for the cache, --out for a build)"


def write_whole(file: Path, content: bytes) -> None:
    """Write beside the file, then take its place: it is never seen cut short.

    Raises: OSError that names the file.
    """
    with replacing(file) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def replacing(file: Path, partial: Path | None = None) -> Iterator[Path]:
    """A path beside the file to write to. At the end it takes the file's place; after an error it is removed.

    Raises: OSError that names the file.
    """
    partial = partial or file.with_name(f"{file.name}.partial")
    with naming(file):
        try:
            yield partial
            partial.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Where the system refuses to write, say which file: an error of `write` alone names none.

    Raises: OSError with the same number.
    """
    try:
        yield
    except OSError as error:
        is_elsewhere = error.filename is not None and not Path(str(error.filename)).is_relative_to(file.parent)
        if error.errno not in REFUSALS or is_elsewhere or FIX in str(error):
            raise
        raise OSError(error.errno, f"{error.strerror} while writing {file}; {FIX}") from error


def temporary_in(folder: Path) -> dict[str, str]:
    """The environment of a child whose temporary files go into this folder, and with it, even when it is killed."""
    return {**os.environ, "TMPDIR": str(folder)}
