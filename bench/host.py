"""The process of a subject: `python -m bench.host MODULE:CLASS` answers tasks from stdin until it closes.

What native libraries print to stdout is sent to stderr, so that it cannot break the protocol.
"""

import importlib
import os
import sys
import time
import traceback
from typing import BinaryIO

from bench import protocol
from bench.protocol import Answer, Setup, Task
from bench.subject import Subject, SubjectAbsent


def answer_task(subject: Subject, task: Task) -> Answer:
    """Run one task. Whatever goes wrong becomes an answer, because the bench goes on with the other subjects."""
    try:
        if isinstance(task, Setup):
            started = time.perf_counter()
            version = subject.open(task)
            return protocol.Opened(version=version, load_s=time.perf_counter() - started)
        measure = subject.measures.get(type(task))
        if measure is None:
            return protocol.Unsupported(reason=f"{type(subject).__name__} has no {type(task).__name__}")
        return measure(task)
    except SubjectAbsent as absent:
        return protocol.Absent(reason=str(absent))
    except Exception as error:  # a peer may raise anything
        traceback.print_exc()
        return protocol.Failed(error=f"{type(error).__name__}: {error}")


def serve(subject: Subject, tasks: BinaryIO, answers: BinaryIO) -> None:
    """Answer line by line until the tasks end."""
    try:
        for line in tasks:
            answers.write(protocol.encode(answer_task(subject, protocol.task_decoder.decode(line))) + b"\n")
            answers.flush()
    finally:
        subject.close()


def load_subject(target: str) -> Subject:
    """Make the subject that `MODULE:CLASS` names. Its libraries are imported only when it is opened."""
    module, _, name = target.partition(":")
    subject: Subject = getattr(importlib.import_module(module), name)()
    return subject


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(load_subject(sys.argv[1]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
