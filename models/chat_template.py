"""Chat templates: Jinja text that came with a model, rendered in a sandbox the way transformers renders it.

A template is somebody else's program: it sees only what `render` is given.
"""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import BadRequest, ConfigError

logger = logging.getLogger(__name__)

TOOL_MARK = "<tool_call>"
"""What a call begins with in templates of the Hermes and Qwen families; others have forms of their own."""


RESERVED = frozenset(
    ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "strftime_now")
)
"""Names that a request gives no value: it has fields of its own for them, or none."""


class Refusal(jinja2.TemplateError):
    """The template's own words about messages that it does not take."""


STUMBLES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; when serving it is just its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads the class attribute

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template. `bos_token` and `eos_token` are the texts it may write."""

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        """Compile. Raises: ConfigError with the line of a syntax error."""
        self.source = source
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._variables: dict[str, Any] = {name: text for name, text in tokens.items() if text is not None}
        self._variables |= {"tools": None, "documents": None}  # templates test them with `is not none`
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"the model's chat template is damaged: line {error.lineno}: {error.message}") from error
        self.reads = frozenset(names - RESERVED)
        """The variables that it has beside messages, tools and special tokens, such as `enable_thinking`."""
        self.writes_tools = "tools" in names and TOOL_MARK in source
        """Whether it describes tools to the model by itself, and writes calls in the one form that fenhe reads back."""

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation; special tokens appear in it as text. `tools`: where `writes_tools`. Of
        `variables` it sees what it `reads`.

        Raises: BadRequest with the template's own words when it refuses the messages.
        """
        given = {name: value for name, value in (variables or {}).items() if name in self.reads}
        own = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": tools}
        try:
            return self._template.render(self._variables | given | own)
        except Refusal as error:
            raise BadRequest(f"the chat template refused the messages: {error}", param="messages") from error
        except STUMBLES as error:
            logger.debug("chat template failed error=%s", error)  # of Jinja's or Python's, about the template's insides
            raise BadRequest("the chat template cannot render these messages", param="messages") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    functions: dict[str, Callable[[str], str]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    environment.globals.update(functions)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes HTML characters and sorts keys, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> str:
    raise Refusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
