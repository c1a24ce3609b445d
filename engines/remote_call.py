"""What a remote student is asked: one HTTP request, ready to be sent to any of its upstreams."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True, frozen=True)
class RemoteCall:
    """`endpoint` is what follows the upstream's base URL, such as `chat/completions`; `body` is JSON that names the
    upstream's `model`. `num_prompt_tokens` is an estimate: only the upstream can count them. Calls with the same
    `affinity` begin alike, so one replica may have computed that beginning before.
    """

    endpoint: str
    model: str
    body: bytes
    is_stream: bool
    num_prompt_tokens: int
    affinity: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class Sender:
    """What an upstream is told beside the body: none of it changes the answer."""

    headers: Mapping[str, str]


def affinity_of(beginning: bytes) -> str:
    """The same for equal beginnings; it reveals nothing of them."""
    return hashlib.sha256(beginning).hexdigest()[:16]
