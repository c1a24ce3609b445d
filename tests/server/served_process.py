"""Run as a program by test_serve.py: `serve()` itself, with signals, on the scripted engine. Prints the URL.

Arguments: the grace period, and a settings file, without which there are no settings to read again.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from server.context import make_context
from server.http.listener import open_socket
from server.serve import serve
from server.settings.reading import draft_config
from server.telemetry.logs import set_up_logging
from tests.server.conftest import SCRIPT, make_engine, make_student, open_scripted


def main() -> int:
    file = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    draft = partial(draft_config, {"port": "0", "grace_s": sys.argv[1]}, {"HOME": "/nowhere"}, file)
    config, _ = draft()
    set_up_logging(config)
    student = make_student(Path("/nowhere"))
    students = [open_scripted(student, make_engine(SCRIPT))]
    context = make_context(config, students, draft_config=None if file is None else draft)
    with open_socket(config) as listener:
        return serve(context, listener, announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    sys.exit(main())
