"""A conversation of `fenhe chat`, and the commands that begin with a slash."""

import json
import os
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, TextIO

from models.errors import BadRequest, ServingError
from server.commands.chat_stream import ChatOptions, Messages, Reply, ask
from server.commands.client import get
from server.commands.path_picture import DIM, Paint, PathShape, draw, paint_for, read_shapes
from server.settings.suggestions import did_you_mean

HELP = {
    "/compare A B [QUESTION]": "two paths or model ids on one question (else the last one): where they part, and speed",
    "/route QUESTION": "where it would go, and why",
    "/paths": "the student's paths and what they cost",
    "/model ID": "ask this model id from now on: auto, a student, a student's path; alone: which one it is",
    "/system TEXT": "a new system message, and a new conversation",
    "/retry": "the last question once more",
    "/new": "forget the conversation",
    "/save FILE": "write the conversation as JSON",
    "/help": "this list",
    "/quit": "leave, as Ctrl-D does",
}
KEYS = 'A line that ends in \\ goes on in the next; so does all between two lines of """. Ctrl-C stops an answer.'


class ChatSession:
    """What was said so far, and where the answers go."""

    def __init__(self, options: ChatOptions, out: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        self._options, self._out = options, out
        self._paint: Paint = paint_for(out, environ)
        self._shapes: list[PathShape] | None = None
        self.messages: Messages = []
        self._forget()
        self._commands: dict[str, Callable[[str], None]] = {
            "/compare": self._compare,
            "/route": self._route,
            "/paths": self._paths,
            "/model": self._model,
            "/system": self._system,
            "/retry": self._retry,
            "/new": lambda rest: self._forget(),
            "/save": self._save,
            "/help": self._help,
        }

    def take(self, text: str) -> bool:
        """A question or a command; False: the user wants to leave. What begins with two slashes is a question that
        begins with one. Raises: as `say`; BadRequest for a command that there is not.
        """
        if not text.startswith("/") or text.startswith("//"):
            self.say(text.removeprefix("/") if text.startswith("//") else text)
            return True
        name, _, rest = text.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name not in self._commands:
            known = did_you_mean(name, self._commands)
            raise BadRequest(f"there is no {name}{known}; /help lists all, // begins a question with a slash")
        self._commands[name](rest.strip())
        return True

    def say(self, question: str) -> Reply:
        """Ask, and keep both sides, the answer as far as it came. A question that was refused is not kept.

        Raises: ConfigError, Unavailable, BadRequest, Unauthorized.
        """
        self.messages.append({"role": "user", "content": question})
        try:
            reply = ask(self._options, self.messages, self._out)
        except ServingError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": reply.text})
        self._out.write(f"\n{self._told(reply)}\n")
        self._out.flush()
        return reply

    def _told(self, reply: Reply) -> str:
        """One line about an answer: in brackets for a file, with the path drawn at a terminal."""
        if not self._out.isatty():
            return f"[{reply.summary()}]"
        shape = next((one for one in self._known() if (one.student, one.path) == (reply.student, reply.path)), None)
        confidence = "" if reply.confidence is None else f" {reply.confidence:.2f}"
        parts = [f"{reply.task}{confidence} → {reply.path}" if reply.task else f"path {reply.path}"]
        parts += [draw(shape, self._known(), self._paint)] if shape else []
        parts += [f"{reply.compute:.0%} of the compute"] if reply.compute is not None else []
        parts.append(", ".join(reply.figures()))
        parts += [f"cache {reply.cache}"] if reply.cache in ("hit", "join") else []
        parts += ["stopped"] if reply.is_stopped else []
        return self._paint("  ".join(parts), DIM)

    def _known(self) -> list[PathShape]:
        """The server's paths, asked for once. A server that has no such list has none."""
        if self._shapes is None:
            try:
                self._shapes = read_shapes(json.loads(get(self._options.url, "/v1/models", self._options.api_key)))
            except (ServingError, ValueError, KeyError, TypeError):
                self._shapes = []
        return self._shapes

    def _compare(self, rest: str) -> None:
        first, second, question = (*rest.split(maxsplit=2), "", "", "")[:3]
        if not second:
            raise BadRequest("name two paths or model ids: /compare full narrow Why is the sky blue?")
        messages = self._asked(question)
        replies = []
        for name in (first, second):
            model = self._model_id(name)
            self._out.write(self._paint(f"── {model}\n", "1"))
            replies.append(ask(self._options, messages, self._out, model=model))
            self._out.write(f"\n{self._told(replies[-1])}\n")
            if replies[-1].is_stopped:
                return
        self._out.write(f"{where_they_part(*(reply.text for reply in replies))}\n")

    def _asked(self, question: str) -> Messages:
        """The conversation up to this question, or up to the last one. Raises: BadRequest without any."""
        if question:
            return [*self.messages, {"role": "user", "content": question}]
        until = max((i for i, one in enumerate(self.messages) if one["role"] == "user"), default=None)
        if until is None:
            raise BadRequest("nothing was asked yet")
        return self.messages[: until + 1]

    def _model_id(self, name: str) -> str:
        """A path's model id; anything else is taken for one."""
        return next((shape.model for shape in self._known() if shape.path == name), name)

    def _route(self, rest: str) -> None:
        from server.commands.route import ask_server, show

        if not rest:
            raise BadRequest("give a question: /route Is it legal to record a call?")
        reply = ask_server(self._options.url, rest, None, None, self._options.api_key)
        self._out.write(f"{show(reply, is_json=False)}\n")

    def _paths(self, rest: str) -> None:
        if not self._known():
            self._out.write("this server lists no paths\n")
        width = max((len(shape.model) for shape in self._known()), default=0)
        for shape in self._known():
            picture = draw(shape, self._known(), self._paint)
            self._out.write(f"{shape.model:<{width}}  {picture}  {shape.compute:.0%} of the compute\n")

    def _model(self, rest: str) -> None:
        if rest:
            self._options.model = self._model_id(rest)
        self._out.write(f"model {self._options.model}\n")

    def _system(self, rest: str) -> None:
        self._options.system = rest or None
        self._forget()

    def _retry(self, rest: str) -> None:
        before, messages = self.messages, self._asked("")
        self.messages = messages[:-1]
        try:
            self.say(messages[-1]["content"])
        except ServingError:
            self.messages = before
            raise

    def _forget(self) -> None:
        system = self._options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def _save(self, rest: str) -> None:
        if not rest:
            raise BadRequest("name a file: /save conversation.json")
        try:
            with open(os.path.expanduser(rest), "x", encoding="utf-8") as file:
                json.dump({"model": self._options.model, "messages": self.messages}, file, ensure_ascii=False, indent=1)
        except OSError as error:
            raise BadRequest(f"{rest} cannot be written: {error.strerror}") from None
        self._out.write(f"saved to {rest}\n")

    def _help(self, rest: str) -> None:
        width = max(map(len, HELP))
        for usage, meaning in HELP.items():
            self._out.write(f"{usage:<{width}}  {meaning}\n")
        self._out.write(f"{KEYS}\n")


def where_they_part(first: str, second: str) -> str:
    """The words that two answers have in common from the beginning, in a sentence."""
    if first == second:
        return "both say the same"
    pairs: Any = zip(first.split(), second.split(), strict=False)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if not shared:
        return "they differ from the first word"
    return f"the same for {len(shared)} words, up to “{' '.join(shared[-4:])}”"
