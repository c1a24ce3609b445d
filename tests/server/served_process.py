"""Run as a program by test_serve.py: `serve()` itself, with signals, on the scripted engine. Prints the URL."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from server.config import ServerConfig
from server.context import make_context
from server.listener import open_socket
from server.logs import set_up_logging
from server.serve import serve
from tests.server.conftest import SCRIPT, make_engine, make_student, open_scripted


def main() -> int:
    config = ServerConfig(port=0, grace_s=float(sys.argv[1]))
    set_up_logging(config)
    student = make_student(Path("/nowhere"))
    context = make_context(config, [open_scripted(student, make_engine(SCRIPT))])
    with open_socket(config) as listener:
        return serve(context, listener, announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    sys.exit(main())
