"""Which instruction set of a compiled library this process uses; tests choose another than the best."""

import ctypes
from pathlib import Path


def instructions_of(library: Path) -> str:
    function = ctypes.CDLL(str(library)).fenhe_instructions
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def choose_instructions(library: Path, name: str) -> None:
    """For all sessions of this process that use this library, from now on.

    Raises: ValueError where the library or the processor does not have it.
    """
    if not ctypes.CDLL(str(library)).fenhe_choose_instructions(name.encode()):
        raise ValueError(f"{library.name} has no operators for {name!r} that this processor can run")


def attends_in_bf16(library: Path) -> bool:
    """Whether attention multiplies bf16, and writes such values into the cache."""
    return instructions_of(library) == "bf16"
