"""What is known of a request beside what its fields say."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True, frozen=True)
class Envelope:
    """The key its sequences are named after, its x-request-id, its tenant, and how many bytes the body has.

    For remote students also the body as it came, the endpoint's name (`chat/completions`), and those of its headers
    that say where it comes from.
    """

    key: str
    request_id: str = ""
    tenant: str | None = None
    num_bytes: int = 0
    raw: bytes = b""
    endpoint: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
