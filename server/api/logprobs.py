"""Tokens and their log-probabilities as chat completions and responses show them."""

from engines.sequence import TokenLogprob
from server.generation.sequences import text_of
from server.wire.base import encoded
from server.wire.chat import ContentLogprob, TopLogprob


def content_logprobs(logprobs: list[TokenLogprob]) -> list[ContentLogprob]:
    """Each of them encoded already."""
    return [encoded(_content_logprob(logprob)) for logprob in logprobs]


def _content_logprob(logprob: TokenLogprob) -> ContentLogprob:
    return ContentLogprob(
        token=text_of(logprob),
        logprob=logprob.logprob,
        bytes=list(logprob.token_bytes),
        top_logprobs=[
            TopLogprob(token=text_of(other), logprob=other.logprob, bytes=list(other.token_bytes))
            for other in logprob.alternatives
        ],
    )
