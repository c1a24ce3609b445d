"""One upstream as the engine sees it: whether it can be asked, which models it has, how much it does."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.breaker import Breaker

AFFINITY_SLACK = 4
"""So many requests more than the least loaded one may a replica have and still get those whose prefix it has."""


@dataclass(slots=True, eq=False)
class Upstream:
    """Written by the engine's thread alone. `models` None: it did not say which it has. `reason` says why it is not
    there, and names no address; `num_running` counts requests that it is working on. With `is_slow` it works on some
    and says nothing else, as small servers do; others are asked first."""

    url: str
    breaker: Breaker
    headers: dict[str, str] = field(default_factory=dict)
    is_there: bool = True
    is_slow: bool = False
    reason: str = ""
    models: frozenset[str] | None = None
    num_running: int = 0
    num_requests: int = 0
    num_failures: int = 0

    @property
    def can_be_asked(self) -> bool:
        """Whether a request may try it: it answers, and has not just failed several times."""
        return self.is_there and (not self.breaker.is_open or self.breaker.is_trial_due)

    def has(self, model: str) -> bool:
        """Whether it has a model, as far as is known."""
        return self.models is None or model in self.models

    def fail(self, reason: str, *, is_gone: bool = False) -> None:
        """Note a failed request; `is_gone`: it cannot even be reached, and is not asked until it is looked at again."""
        self.num_failures += 1
        self.reason = reason
        self.breaker.fail()
        if is_gone:
            self.is_there = False

    def succeed(self) -> None:
        self.breaker.succeed()
        self.reason = ""


def make_upstream(url: str, key: str | None, max_failures: int, pause_s: float) -> Upstream:
    """Without a path, OpenAI's own is taken: `/v1`."""
    base = url.rstrip("/")
    base = base if base.count("/") > 2 else f"{base}/v1"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return Upstream(base, Breaker(max_failures, pause_s, clock=time.monotonic), headers)


def choose(upstreams: Sequence[Upstream], model: str, affinity: str, tried: Sequence[Upstream]) -> Upstream | None:
    """The upstream for a request: of those that can be asked, have the model and were not tried, the one that equal
    beginnings go to, unless it is much busier than the least loaded one. None: there is none.

    Source: rendezvous hashing (Thaler and Ravishankar, 1998): a replica that comes or goes moves only its own share.
    """
    able = [one for one in upstreams if one.can_be_asked and one.has(model) and one not in tried]
    able = [one for one in able if not one.is_slow] or able
    if not able:
        return None
    least = min(able, key=lambda one: one.num_running)
    if not affinity:
        return least
    home = max(able, key=lambda one: hashlib.blake2b(f"{affinity} {one.url}".encode(), digest_size=8).digest())
    return home if home.num_running <= least.num_running + AFFINITY_SLACK else least
