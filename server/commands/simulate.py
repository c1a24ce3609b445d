"""`fenhe simulate`: the whole server on a student without a model, which answers at set times, and breaks when told
to."""

import argparse
import os
from functools import partial

from models.errors import ConfigError

MOST_REQUESTS = 8192
MOST_TOKENS = 10**9
"""Of prompts and answers that run: one token a byte is many, and no engine needs memory for them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve without a model: every answer comes at set times. For tests of clients, and to measure what the server "
        "itself adds. Other settings are FENHE_* variables, as for `fenhe serve`."
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: any that is free")
    parser.add_argument("--first-token-ms", type=float, default=200.0, metavar="MS", help="default: %(default)s")
    parser.add_argument("--inter-token-ms", type=float, default=50.0, metavar="MS", help="default: %(default)s")
    parser.add_argument("--fail-share", type=float, default=0.0, metavar="X", help="of the streams that break, 0 to 1")
    parser.add_argument("--max-running", type=int, default=4096, metavar="N", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Raises: ConfigError."""
    if problems := _problems(arguments):
        raise ConfigError(*problems)
    from server.context import make_context
    from server.http.listener import open_socket
    from server.lifecycle.settings_check import read_sound
    from server.serve import serve
    from server.settings.reading import draft_config
    from server.students.open_student import load_classifier
    from server.students.simulated import Simulation, open_simulated
    from server.telemetry.logs import set_up_logging

    simulation = Simulation(
        first_token_s=arguments.first_token_ms / 1000,
        inter_token_s=arguments.inter_token_ms / 1000,
        fail_share=arguments.fail_share,
        max_running=arguments.max_running,
    )
    flags = {"port": str(arguments.port), "limits.max_requests": str(MOST_REQUESTS)}
    flags["engine.max_running"] = str(arguments.max_running)
    flags["admission.max_running_tokens"] = str(MOST_TOKENS)
    draft = partial(draft_config, flags, os.environ, None)
    config, keys = read_sound(draft)
    set_up_logging(config)
    opened = open_simulated(simulation)
    context = make_context(config, [opened], classifier=load_classifier(config.router), keys=keys)
    with open_socket(config) as listener:
        return serve(context, listener, announce=partial(_announce, opened.name))


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if min(arguments.first_token_ms, arguments.inter_token_ms) < 0:
        problems.append("--first-token-ms and --inter-token-ms are at least 0")
    if not 0 <= arguments.fail_share <= 1:
        problems.append("--fail-share lies between 0 and 1")
    if arguments.max_running < 1:
        problems.append("--max-running is at least 1")
    return problems


def _announce(student: str, url: str) -> None:
    print(f"fenhe serves {student} at {url}/v1", flush=True)
