"""How a conversation becomes a prompt: whether a new answer begins or the last message goes on, and what else the chat
template is told.

Source: vLLM, `ChatCompletionRequest`: add_generation_prompt, continue_final_message, chat_template_kwargs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import InvalidParameter
from server.wire.chat import Message

END_MARK = "\ue000fenhe goes on here\ue001"
"""Stands at the end of the message that goes on while the template is rendered. Private characters: no one types it."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Rendering:
    """With `continues` the prompt ends inside the last message. `variables` are those of the request, of which a
    template sees what it reads."""

    adds_prompt: bool = True
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


NEW_ANSWER = Rendering()


class RenderedBody(Protocol):
    """What bodies with messages have in common."""

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def continue_final_message(self) -> bool | None: ...

    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...

    @property
    def reasoning_effort(self) -> str | dict[str, Any] | None: ...


def rendering_of(body: RenderedBody, messages: Sequence[Message]) -> Rendering:
    """An answer that the messages end with goes on, unless the request says otherwise.

    Raises: InvalidParameter for a last message that cannot go on, or is to go on after a new one began.
    """
    continues = bool(messages) and _continues(body, messages[-1])
    effort = body.reasoning_effort
    variables = {"reasoning_effort": effort} if isinstance(effort, str) else {}
    return Rendering(
        adds_prompt=body.add_generation_prompt is not False and not continues,
        continues=continues,
        variables={**variables, **(body.chat_template_kwargs or {})},
    )


def _continues(body: RenderedBody, last: Message) -> bool:
    if body.continue_final_message is None:
        return last.role == "assistant" and not last.tool_calls and body.add_generation_prompt is None
    if not body.continue_final_message:
        return False
    param = "continue_final_message"
    if body.add_generation_prompt:
        raise InvalidParameter(f"`{param}` and `add_generation_prompt` contradict each other", param=param)
    if last.tool_calls:
        raise InvalidParameter(
            f"`{param}`: the last message has `tool_calls`, after which nothing goes on", param=param
        )
    return True


def with_end_mark(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates know them, the last one with a mark where it goes on."""
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{END_MARK}"}]


def cut_at_end_mark(text: str) -> str:
    """Raises: InvalidParameter when the template did not write the last message."""
    before, mark, _ = text.rpartition(END_MARK)
    if not mark:
        raise InvalidParameter(
            "`continue_final_message`: this student's chat template does not write the last message",
            param="continue_final_message",
        )
    return before
