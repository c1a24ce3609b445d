"""Run as a program: a server of two students without a model. Prints its address; settings are `FENHE_*` variables.

`scripted` answers from a script, so that an agent's whole loop is known beforehand. `random` says anything that the
grammar of a request allows.
"""

import os
import sys
from functools import partial
from pathlib import Path

import msgspec

from engines.scripted import ScriptedEngine
from models.student.folder import Student
from server.context import make_context
from server.http.listener import open_socket
from server.lifecycle.settings_check import read_sound
from server.serve import serve
from server.settings.reading import draft_config
from server.students.open_student import Opened
from server.telemetry.logs import set_up_logging
from tests.clients.prompts import CONTEXT_TOKENS, DEFAULT_LINE, SCRIPT
from tests.server.conftest import make_manifest, make_tokenizer
from tests.server.random_engine import open_random

SCRIPTED = "scripted"


def open_scripted() -> Opened:
    manifest = make_manifest(SCRIPTED)
    architecture = msgspec.structs.replace(manifest.architecture, max_context_tokens=CONTEXT_TOKENS)
    manifest = msgspec.structs.replace(manifest, architecture=architecture)
    tokenizer = make_tokenizer()
    engine = ScriptedEngine(
        student=SCRIPTED,
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: tokenizer.decode(list(ids), skip_special=False),
        script=SCRIPT,
        default_line=DEFAULT_LINE,
        max_context_tokens=CONTEXT_TOKENS,
    )
    student = Student(folder=Path("nowhere"), manifest=manifest, tokenizer=tokenizer)
    return Opened(name=SCRIPTED, student=student, engine=engine)


def main() -> int:
    draft = partial(draft_config, {"port": "0", "router.enabled": "false"}, os.environ, None)
    config, keys = read_sound(draft)
    set_up_logging(config)
    context = make_context(config, [open_scripted(), open_random()], keys=keys)
    with open_socket(config) as listener:
        return serve(context, listener, announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    sys.exit(main())
