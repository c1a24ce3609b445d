"""Tokens and their log-probabilities as chat completions, text completions and responses show them."""

from collections.abc import Callable

from engines.sequence import TokenLogprob
from server.wire.base import encoded
from server.wire.chat import ContentLogprob, TopLogprob

TokenName = Callable[[int], str]
"""What a token without text is called, such as `<|im_end|>`, by its id."""


def content_logprobs(logprobs: list[TokenLogprob], name: TokenName) -> list[ContentLogprob]:
    """Each of them encoded already."""
    return [encoded(_content_logprob(logprob, name)) for logprob in logprobs]


def _content_logprob(logprob: TokenLogprob, name: TokenName) -> ContentLogprob:
    return ContentLogprob(
        token=token_text(logprob, name),
        logprob=logprob.logprob,
        bytes=list(logprob.token_bytes),
        top_logprobs=[
            TopLogprob(token=token_text(other, name), logprob=other.logprob, bytes=list(other.token_bytes))
            for other in logprob.alternatives
        ],
    )


def token_text(logprob: TokenLogprob, name: TokenName) -> str:
    """A token as text; its name where it has none, such as a special token's."""
    return text_of_bytes(logprob.token_bytes) if logprob.token_bytes else name(logprob.token_id)


def text_of_bytes(token: bytes) -> str:
    r"""A token's text, or `bytes:\xf0\x9f` where it has a part of a character: such tokens differ only by their bytes.

    Source: OpenAI's text completions, which write them so.
    """
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def best_by_text(logprob: TokenLogprob, name: TokenName) -> dict[str, float]:
    """The likeliest tokens and the chosen one, which may not be among them; where two have the same text, the better.

    Source: OpenAI API reference, completions: up to `logprobs` + 1 elements.
    """
    best: dict[str, float] = {}
    for other in (*logprob.alternatives, logprob):
        text = token_text(other, name)
        best[text] = max(other.logprob, best.get(text, other.logprob))
    return best
