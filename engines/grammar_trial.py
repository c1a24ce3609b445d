"""Compiling a grammar in a process of its own, to find out what it costs before the server compiles it.

The library cannot hand a compiled grammar to another process, so this is only a trial; but it is one that can be ended.
Run as a program, it answers trials from stdin on stdout, one at a time, after a first message with the vocabulary.
Neither side trusts the other with more than data: messages are msgpack with their length before them.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO, TypeVar

import msgspec

from engines.config import MIB
from engines.grammar import GrammarCompiler, Vocabulary, json_body, schema_problem
from engines.schema_loosening import Followed, Loosened, Loosens, Refusal, SchemaRule, follow, whole
from models.errors import InvalidParameter

WORK_BYTES = 256 * MIB
"""What a trial may allocate; the process is ended beyond that."""
LAST_S = 5.0
"""How much longer than its time a trial may live whose server is gone."""
MOST_LEFT_BYTES = 64 * MIB
"""A process that keeps more than this after a trial ends itself: the next one must have its whole share."""
NICENESS = 10
"""A tenth of what the engine gets where both want the same core."""
HEAD = struct.Struct("<I")
TOGETHER = "the schemas are too large together; make them simpler, or send fewer"
REFERENCE = '"$ref"'
"""A schema that refers to itself may have no value, which shows only where it stands first in a grammar."""

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
    """The grammar's `rules`, all but those that are schemas. One that would hold more than `max_bytes` is loosened
    where it may be."""

    rules: str
    schemas: list[SchemaRule] = []
    time_limit_s: float
    max_bytes: int = WORK_BYTES


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is why there is no such grammar; `where` and `pointer` lead to the part of a schema that is at fault.

    `changed` are the schemas that had to be loosened, as they are now, and `loosened` the places. `num_bytes` is the
    memory that the compiled grammar holds. After `is_last` the process ends.
    """

    problem: str | None = None
    where: str | None = None
    pointer: str = ""
    changed: list[SchemaRule] = []
    loosened: list[Loosened] = []
    num_bytes: int = 0
    compile_s: float = 0.0
    is_last: bool = False


def source_of(rules: str, schemas: Sequence[SchemaRule]) -> str:
    """The whole text of a grammar."""
    return "\n".join([rules, *(f"{one.name}: {json_body(one.schema)}" for one in schemas)])


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
    """Compile what a trial asks for, once each schema in it is found to have no problem of its own, or was loosened."""
    followed = []
    for rule in trial.schemas:
        found = follow(rule, schema_problem)
        if isinstance(found, Followed) and REFERENCE in rule.text:
            found = _fitting(compiler, found)
        if isinstance(found, Refusal):
            return Outcome(problem=found.problem, where=rule.where, pointer=found.pointer)
        followed.append(found)
    outcome = Outcome()
    for attempt in _attempts(compiler, followed):
        outcome = _measured(compiler, trial, attempt)
        if outcome.problem is None and outcome.num_bytes <= trial.max_bytes:
            break
    return outcome


def _attempts(compiler: GrammarCompiler, followed: Sequence[Followed]) -> Iterator[list[Followed]]:
    """The schemas of a grammar, then with less and less of those of which anything may be left out."""
    yield list(followed)
    if any(one.rule.loosens is Loosens.ANYTHING for one in followed):
        fitting = [_fitting(compiler, one) if one.rule.loosens is Loosens.ANYTHING else one for one in followed]
        yield [one for one in fitting if isinstance(one, Followed)]
        yield [whole(one.rule, TOGETHER) if one.rule.loosens is Loosens.ANYTHING else one for one in followed]


def _measured(compiler: GrammarCompiler, trial: Trial, followed: Sequence[Followed]) -> Outcome:
    source = source_of(trial.rules, [one.rule for one in followed])
    before, begun_s = allocated_bytes(), time.perf_counter()
    try:
        grammar = compiler.compile(source)
    except InvalidParameter as error:
        return Outcome(problem=error.message)
    compile_s, num_bytes = time.perf_counter() - begun_s, allocated_bytes() - before
    del grammar
    return Outcome(
        changed=[one.rule for one, asked in zip(followed, trial.schemas, strict=True) if one.rule != asked],
        loosened=[place for one in followed for place in one.loosened],
        num_bytes=max(num_bytes, len(source)),
        compile_s=compile_s,
    )


def _fitting(compiler: GrammarCompiler, followed: Followed) -> Followed | Refusal:
    """A schema that cannot be compiled even alone is loosened as a whole where it may be."""
    try:
        compiler.compile(source_of(f"start: {followed.rule.name}", [followed.rule]))
    except InvalidParameter as error:
        if followed.rule.loosens is not Loosens.ANYTHING:
            return Refusal("", error.message)
        return whole(followed.rule, error.message)
    return followed


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
