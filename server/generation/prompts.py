"""From what a request says to prompt token ids: messages through the chat template, text as it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from engines.grammar import Grammar
from engines.schema_loosening import Loosened
from models.errors import BadRequest, InvalidParameter
from router.conversation import Conversation, conversation_of
from server.generation.limits import prompt_too_long
from server.generation.rendering import NEW_ANSWER, Rendering, cut_at_end_mark, with_end_mark
from server.generation.tools import as_text, calls_for_template, check_turns, tools_for_template, with_objects
from server.students.student import ServedStudent, Template
from server.wire.chat import FunctionDefinition, Message

TextPrompt = str | list[int]


@dataclass(slots=True, kw_only=True, frozen=True)
class Prompt:
    """A prompt in one student's tokens; `text` is what an echo repeats, `grammar` what the answer must follow,
    `loosened` where that is less than was asked for. A remote student's has no tokens, but an estimate of their
    number."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    grammar: Grammar | None = None
    loosened: tuple[Loosened, ...] = ()
    num_estimated: int | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) if self.num_estimated is None else self.num_estimated


def conversation_in(messages: list[Message]) -> Conversation:
    """The part of the messages that is classified. Raises: InvalidParameter."""
    return conversation_of((message.role, _text(message, f"messages[{i}]")) for i, message in enumerate(messages))


def encode_messages(
    student: ServedStudent,
    messages: list[Message],
    *,
    functions: Sequence[FunctionDefinition] = (),
    rendering: Rendering = NEW_ANSWER,
    max_tokens: int | None = None,
    parses_special: bool = False,
) -> tuple[int, ...]:
    """The token ids of a conversation's prompt, which also describes `functions`. What spells a special token in
    messages and functions is text, unless `parses_special`.

    Raises: BadRequest for a student without a chat template, or when the template refuses the messages;
    InvalidParameter for calls and results that do not fit together; ContextTooLong, before anything is tokenised, for
    what certainly has more than `max_tokens`.
    """
    template = student.tokenizer.chat_template
    if template is None:
        raise BadRequest(
            "this student has no chat template; send the prompt as text to /v1/completions", param="messages"
        )
    check_turns(messages)
    tokenizer, guard = student.tokenizer, student.tokenizer.guard
    plain = [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    tools = tools_for_template(functions)
    if not parses_special:
        plain = guard.marked(plain)
        with _not_too_deep("chat_template_kwargs"):
            rendering = replace(rendering, variables=guard.marked(rendering.variables))
    with _not_too_deep("tools"):
        if not parses_special:
            tools = guard.marked(tools)
        if not template.writes_tools:
            plain, tools = as_text(plain, tools), []
    try:
        text = _rendered(template, plain, tools or None, rendering)
    except BadRequest as error:
        error.message = guard.unmarked(error.message)
        raise
    check_length(student, guard.unmarked(text), max_tokens, "messages")
    ids = tuple(tokenizer.encode(text) if parses_special else tokenizer.encode_guarded(text))
    if not ids:
        raise InvalidParameter("`messages`: nothing is left of them after the chat template", param="messages")
    return ids


@contextmanager
def _not_too_deep(param: str) -> Iterator[None]:
    """For what goes through a field's value, which may be as deep as `limits.max_json_depth` lets it be.

    Raises: InvalidParameter instead of RecursionError.
    """
    try:
        yield
    except RecursionError:
        raise InvalidParameter(f"`{param}` is nested too deeply", param=param) from None


def _rendered(
    template: Template, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, rendering: Rendering
) -> str:
    """Raises: BadRequest when the template refuses the messages, also with every call's arguments made an object."""
    if rendering.continues:
        text = _rendered(template, with_end_mark(messages), tools, replace(rendering, continues=False))
        return cut_at_end_mark(text)
    options: dict[str, Any] = {
        "tools": tools,
        "add_generation_prompt": rendering.adds_prompt,
        "variables": rendering.variables,
    }
    try:
        return template.render(messages, **options)
    except BadRequest:
        objects = with_objects(messages)
        if objects == messages:
            raise
        return template.render(objects, **options)


def _plain_message(message: Message, where: str) -> dict[str, Any]:
    """A message as templates know it: plain text, and `system` for what newer clients call `developer`.

    Source: OpenAI API reference, chat: developer messages replace system messages.
    """
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message, where),
    }
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        plain["tool_calls"] = calls_for_template(message)
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _text(message: Message, where: str) -> str:
    content = message.content
    if content is None and message.role == "assistant":
        return message.refusal or ""
    if content is None and message.role == "tool":
        return ""
    if content is None:
        raise InvalidParameter(f"`{where}.content` is required", param=f"{where}.content")
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content)


def check_length(student: ServedStudent, text: str, max_tokens: int | None, param: str) -> None:
    """Raises: ContextTooLong for a text that is proven to have more tokens than `max_tokens`."""
    if max_tokens is None or len(text) <= max_tokens:
        return
    least = student.tokenizer.least_tokens(text)
    if least > max_tokens:
        raise prompt_too_long(student, f"at least {least}", max_tokens, param)


def check_token_ids(student: ServedStudent, ids: list[int], param: str) -> tuple[int, ...]:
    """Raises: InvalidParameter for an id the student does not have."""
    vocab_size = student.tokenizer.vocab_size
    if max(ids, default=0) >= vocab_size:
        wrong = next(id for id in ids if id >= vocab_size)
        raise InvalidParameter(
            f"`{param}`: {wrong} is no token id of student `{student.name}` (0 to {vocab_size - 1})", param=param
        )
    return tuple(ids)


def split_prompt(prompt: str | list[str | int | list[int]]) -> list[TextPrompt]:
    """One entry per prompt. Raises: InvalidParameter for a list that is empty or mixes kinds."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidParameter("`prompt`: the list is empty", param="prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [ids]
    several = [item for item in prompt if not isinstance(item, int)]
    if len(several) < len(prompt) or len({type(item) for item in several}) > 1:
        raise InvalidParameter("`prompt`: strings, token ids and lists of token ids cannot be mixed", param="prompt")
    return several


def encode_prompt(
    student: ServedStudent, prompt: TextPrompt, *, keeps_text: bool = False, max_tokens: int | None = None
) -> Prompt:
    """Raises: InvalidParameter for one that is empty or not in the student's vocabulary; ContextTooLong, before it is
    tokenised, for one that certainly has more than `max_tokens`."""
    if isinstance(prompt, str):
        check_length(student, prompt, max_tokens, "prompt")
        token_ids = tuple(student.tokenizer.encode(prompt, add_special=True))
        if not token_ids:
            raise InvalidParameter("`prompt`: there is nothing to complete in an empty prompt", param="prompt")
        return Prompt(token_ids=token_ids, text=prompt if keeps_text else "")
    token_ids = check_token_ids(student, prompt, "prompt")
    text = student.tokenizer.decode(token_ids, skip_special=False) if keeps_text else ""
    return Prompt(token_ids=token_ids, text=text)


def prompt_text(student: ServedStudent, prompt: TextPrompt) -> str:
    """A prompt as text, for the classifier; ids that the student does not have are left out."""
    if isinstance(prompt, str):
        return prompt
    vocab_size, tokenizer = student.tokenizer.vocab_size, student.tokenizer
    known = [id for id in prompt if id < vocab_size]
    return tokenizer.decode(known)
