"""SHA-256 of files, streamed: no file is ever held in memory."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

CHUNK_BYTES = 1 << 20


def sha256_of(files: Iterable[Path]) -> str:
    """Hex digest of the files' contents one after the other; of one file it is what `sha256sum` prints."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
