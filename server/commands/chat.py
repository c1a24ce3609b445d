"""`fenhe chat`: a conversation with a server in the terminal. Standard library only."""

import argparse
import os
import sys
from pathlib import Path
from typing import TextIO

from models.errors import ConfigError, ServingError
from server.commands.chat_input import Prompt
from server.commands.chat_session import ChatSession
from server.commands.chat_stream import ChatOptions
from server.commands.client import add_api_key, find_api_key

DEFAULT_URL = "http://127.0.0.1:8000"
MODEL_FILES = ("config.json", "manifest.json")
"""One of them is in every folder with a model: Hugging Face's and ours."""
STOPPED = 130
"""The exit status of a single question whose answer was stopped, as shells have it for Ctrl-C."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Talk to a server. In a conversation, /help lists what else can be typed."
    parser.add_argument("prompt", nargs="?", help="one question; without it: a conversation")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"where the server is (default {DEFAULT_URL})")
    add_api_key(parser)
    parser.add_argument("--model", default="auto", help="model id (default auto)")
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument(
        "--temperature", type=float, help="0: the likeliest answer (default: what the model's authors recommend)"
    )
    parser.add_argument("--max-tokens", type=int, help="longest answer (default: as long as the context lasts)")


def run(arguments: argparse.Namespace) -> int:
    """Raises: ConfigError where the question is a model's file, and as `converse` does."""
    if arguments.prompt and _is_model(arguments.prompt):
        raise ConfigError(
            f"{arguments.prompt} is a model, not a question: serve it with `fenhe serve {arguments.prompt}`, "
            "then talk to it with `fenhe chat`"
        )
    options = ChatOptions(
        url=arguments.url,
        api_key=find_api_key(arguments.api_key, os.environ),
        model=arguments.model,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
        system=arguments.system,
    )
    return converse(options, arguments.prompt, sys.stdin, sys.stdout)


def _is_model(text: str) -> bool:
    if " " in text:
        return False
    try:
        return text.endswith(".gguf") or any((Path(text) / name).is_file() for name in MODEL_FILES)
    except OSError:  # a question too long for a file's name, or a folder that is closed to us
        return False


def converse(options: ChatOptions, prompt: str | None, lines: TextIO, out: TextIO) -> int:
    """Ask `prompt`, or without one everything that `lines` has. At a terminal an error ends the answer, elsewhere all.

    Raises: ConfigError for a URL that cannot be used; Unavailable without a server; BadRequest; Unauthorized.
    """
    session = ChatSession(options, out)
    if prompt is not None:
        return STOPPED if session.say(prompt).is_stopped else 0
    with Prompt.on(lines, out) as questions:
        for question in questions:
            try:
                if not session.take(question):
                    break
            except ServingError as error:
                if not questions.is_terminal:
                    raise
                out.write(f"{error}\n")
    return 0
