"""Compiling a grammar in a process of its own, to find out what it costs before the server compiles it.

The library cannot hand a compiled grammar to another process, so this is only a trial; but it is one that can be ended.
Run as a program, it answers trials from stdin on stdout, one at a time, after a first message with the vocabulary.
Neither side trusts the other with more than data: messages are msgpack with their length before them.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from typing import Any, BinaryIO, TypeVar

import msgspec

from engines.config import MIB
from engines.grammar import GrammarCompiler, Vocabulary, schema_problem
from engines.schema_parts import locate
from models.errors import InvalidParameter

WORK_BYTES = 256 * MIB
"""What a trial may allocate; the process is ended beyond that."""
LAST_S = 5.0
"""How much longer than its time a trial may live whose server is gone."""
MOST_LEFT_BYTES = 64 * MIB
"""A process that keeps more than this after a trial ends itself: the next one must have its whole share."""
NICENESS = 5
HEAD = struct.Struct("<I")

Message = TypeVar("Message")


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """A vocabulary as it travels. `tokens` are the bytes of the tokens by id."""

    tokens: list[bytes]
    special_ids: frozenset[int]
    eos_token_ids: frozenset[int]
    num_logits: int
    work_bytes: int = WORK_BYTES

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def token_bytes(self, token_id: int, /) -> bytes:
        return self.tokens[token_id]

    def is_special(self, token_id: int, /) -> bool:
        return token_id in self.special_ids

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Never asked for: masks allow every legal token, however a tokenizer would spell the text."""
        return []


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """`schemas` are those in the grammar's text, as JSON, by the field they came in."""

    source: str
    schemas: list[tuple[str, str]]
    time_limit_s: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is why there is no such grammar; `where` and `pointer` lead to the part of a schema that is at fault.

    `num_bytes` is the memory that the compiled grammar holds. After `is_last` the process ends.
    """

    problem: str | None = None
    where: str | None = None
    pointer: str = ""
    num_bytes: int = 0
    compile_s: float = 0.0
    is_last: bool = False


def words_of(vocabulary: Vocabulary, num_logits: int) -> Words:
    ids = range(vocabulary.vocab_size)
    return Words(
        tokens=[vocabulary.token_bytes(id) for id in ids],
        special_ids=frozenset(id for id in ids if vocabulary.is_special(id)),
        eos_token_ids=vocabulary.eos_token_ids,
        num_logits=num_logits,
    )


def write_message(file: BinaryIO, message: msgspec.Struct) -> None:
    """Raises: OSError when nobody reads any more."""
    data = msgspec.msgpack.encode(message)
    file.write(HEAD.pack(len(data)) + data)
    file.flush()


def read_message(file: BinaryIO, kind: type[Message], max_bytes: int | None = None) -> Message:
    """Raises: EOFError when the other side has ended, ValueError and DecodeError for what is no message."""
    (size,) = HEAD.unpack(_exactly(file, HEAD.size))
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"a message of {size} bytes")
    return msgspec.msgpack.decode(_exactly(file, size), type=kind)


def _exactly(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


def try_out(compiler: GrammarCompiler, trial: Trial) -> Outcome:
    """Compile what a trial asks for, once the schemas in it are found to have no problem of their own."""
    for where, text in trial.schemas:
        schema: dict[str, Any] = json.loads(text)
        problem = schema_problem(schema)
        if problem is not None:
            return Outcome(problem=problem, where=where, pointer=locate(schema, problem, schema_problem))
    before, begun_s = allocated_bytes(), time.perf_counter()
    try:
        grammar = compiler.compile(trial.source)
    except InvalidParameter as error:
        return Outcome(problem=error.message)
    compile_s, num_bytes = time.perf_counter() - begun_s, allocated_bytes() - before
    del grammar
    return Outcome(num_bytes=max(num_bytes, len(trial.source)), compile_s=compile_s)


class _MallocInfo(ctypes.Structure):
    """Source: glibc, mallinfo2(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def allocated_bytes() -> int:
    """What the C heap has given out; without glibc, what the process has in memory."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return _pages(1)
    library.mallinfo2.restype = _MallocInfo
    info = library.mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


def _pages(column: int) -> int:
    """Bytes of address space (0) or in memory (1)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[column]) * resource.getpagesize()


def serve(source: BinaryIO, target: BinaryIO) -> None:
    words = read_message(source, Words)
    compiler = GrammarCompiler(words, words.num_logits)
    base = _pages(0)
    resource.setrlimit(resource.RLIMIT_AS, (base + words.work_bytes,) * 2)
    write_message(target, Outcome())
    outcome = Outcome()
    while not outcome.is_last:
        trial = read_message(source, Trial)
        signal.setitimer(signal.ITIMER_REAL, trial.time_limit_s + LAST_S)
        outcome = msgspec.structs.replace(try_out(compiler, trial), is_last=_pages(0) > base + MOST_LEFT_BYTES)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(target, outcome)


def main() -> None:
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the server is gone: there is nobody to tell


if __name__ == "__main__":
    main()
