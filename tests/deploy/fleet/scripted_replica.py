"""Run as a program: a server of one student that says the same twenty words to everybody, a word in five milliseconds.
Settings are `FENHE_*` variables; its address is printed once it listens."""

import os
import sys
from functools import partial
from pathlib import Path

from engines.scripted import Line, ScriptedEngine
from models.student.folder import Student
from server.context import make_context
from server.http.listener import open_socket
from server.lifecycle.settings_check import read_sound
from server.serve import serve
from server.settings.reading import draft_config
from server.students.open_student import Opened
from server.telemetry.logs import set_up_logging
from tests.server.conftest import make_manifest, make_tokenizer

NAME = "scripted"
WORDS = Line(pieces=tuple(f"w{number} " for number in range(20)), delay_s=0.005)
LONG = Line(pieces=tuple(f"w{number} " for number in range(200)), delay_s=0.02)


def open_scripted() -> Opened:
    tokenizer = make_tokenizer()
    engine = ScriptedEngine(
        student=NAME,
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: tokenizer.decode(list(ids), skip_special=False),
        script={"slowly": LONG},
        default_line=WORDS,
        max_context_tokens=4096,
    )
    student = Student(folder=Path("nowhere"), manifest=make_manifest(NAME), tokenizer=tokenizer)
    return Opened(name=NAME, student=student, engine=engine)


def main() -> int:
    config, keys = read_sound(partial(draft_config, {"router.enabled": "false"}, os.environ, None))
    set_up_logging(config)
    context = make_context(config, [open_scripted()], keys=keys)
    with open_socket(config) as listener:
        return serve(context, listener, announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    sys.exit(main())
