"""From what a request says to prompt token ids: messages through the chat template, text as it is."""

from typing import Any

from models.errors import BadRequest, InvalidParameter
from server.context import Context, run_beside
from server.schema import Message
from server.student import Template


async def encode_messages(
    context: Context, messages: list[Message], *, add_generation_prompt: bool = True
) -> tuple[int, ...]:
    """Raises: BadRequest for a student without a chat template, or when the template refuses the messages."""
    template = context.student.tokenizer.chat_template
    if template is None:
        raise BadRequest(
            "this student has no chat template; send the prompt as text to /v1/completions", param="messages"
        )
    plain = [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    num_chars = sum(len(message["content"]) for message in plain)
    return await run_beside(num_chars, lambda: _render(context, template, plain, add_generation_prompt))


def _render(
    context: Context, template: Template, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> tuple[int, ...]:
    text = template.render(messages, add_generation_prompt=add_generation_prompt)
    ids = tuple(context.student.tokenizer.encode(text))
    if not ids:
        raise InvalidParameter("`messages`: nothing is left of them after the chat template", param="messages")
    return ids


def _plain_message(message: Message, where: str) -> dict[str, Any]:
    """A message as templates know it: plain text, and `system` for what newer clients call `developer`.

    Source: OpenAI API reference, chat: developer messages replace system messages.
    """
    plain = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message, where),
    }
    return plain if message.name is None else plain | {"name": message.name}


def _text(message: Message, where: str) -> str:
    content = message.content
    if content is None and message.role == "assistant":
        return message.refusal or ""
    if content is None:
        raise InvalidParameter(f"`{where}.content` is required", param=f"{where}.content")
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content)


async def encode_text(context: Context, text: str, *, add_special: bool = True) -> tuple[int, ...]:
    tokenizer = context.student.tokenizer
    return await run_beside(len(text), lambda: tuple(tokenizer.encode(text, add_special=add_special)))


def check_token_ids(context: Context, ids: list[int], param: str) -> tuple[int, ...]:
    """Raises: InvalidParameter for an id the student does not have."""
    vocab_size = context.student.tokenizer.vocab_size
    for id in ids:
        if id >= vocab_size:
            raise InvalidParameter(
                f"`{param}`: {id} is no token id of this student (0 to {vocab_size - 1})", param=param
            )
    return tuple(ids)
