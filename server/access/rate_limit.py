"""What one API key may use: requests and tokens per minute, and requests at once. Pure: times come from the caller."""

from dataclasses import dataclass

from models.errors import RateLimited, RequestTooLarge

MINUTE_S = 60.0
CONCURRENT_RETRY_S = 1.0

RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{word}-{name}" for name in ("requests", "tokens") for word in ("limit", "remaining", "reset")
)


@dataclass(slots=True, kw_only=True, frozen=True)
class KeyLimits:
    requests_per_minute: int
    tokens_per_minute: int
    max_concurrent: int


class Bucket:
    """A token bucket: it holds a minute's worth and refills steadily."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s

    def remaining(self, now_s: float) -> float:
        self._level = min(self.per_minute, self._level + (now_s - self._filled_s) * self.per_minute / MINUTE_S)
        self._filled_s = now_s
        return self._level

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until this much is available."""
        return max(0.0, amount - self.remaining(now_s)) * MINUTE_S / self.per_minute

    def take(self, amount: int, now_s: float) -> None:
        self._level = self.remaining(now_s) - amount

    def give_back(self, amount: int, now_s: float) -> None:
        self._level = min(self.per_minute, self.remaining(now_s) + amount)

    def resize(self, per_minute: int, now_s: float) -> None:
        """Change the size; what was used stays used."""
        used = self.per_minute - self.remaining(now_s)
        self.per_minute = per_minute
        self._level = per_minute - used


class Meter:
    """One key's use. Owned by the loop."""

    def __init__(self, limits: KeyLimits, now_s: float) -> None:
        self._max_concurrent = limits.max_concurrent
        self._requests = Bucket(limits.requests_per_minute, now_s)
        self._tokens = Bucket(limits.tokens_per_minute, now_s)
        self.num_open = 0

    def resize(self, limits: KeyLimits, now_s: float) -> None:
        self._max_concurrent = limits.max_concurrent
        self._requests.resize(limits.requests_per_minute, now_s)
        self._tokens.resize(limits.tokens_per_minute, now_s)

    def enter(self, now_s: float) -> None:
        """Count a request that begins. Raises: RateLimited."""
        if self.num_open >= self._max_concurrent:
            raise RateLimited(
                f"{self.num_open} requests of this key are open, which is its limit; try again when one has ended",
                retry_after_s=CONCURRENT_RETRY_S,
            )
        wait_s = self._requests.wait_s(1, now_s)
        if wait_s > 0:
            raise RateLimited(
                f"this key may send {self._requests.per_minute} requests a minute; try again in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )
        self._requests.take(1, now_s)
        self.num_open += 1

    def leave(self) -> None:
        self.num_open -= 1

    def charge(self, num_tokens: int, now_s: float) -> None:
        """Charge the most tokens that a request may use. Raises: RateLimited, RequestTooLarge."""
        per_minute = self._tokens.per_minute
        if num_tokens > per_minute:
            raise RequestTooLarge(
                f"prompt and longest answer are {num_tokens} tokens, this key may use {per_minute} a minute; "
                "ask for a shorter answer with `max_tokens`",
                param="max_tokens",
            )
        wait_s = self._tokens.wait_s(num_tokens, now_s)
        if wait_s > 0:
            raise RateLimited(
                f"this key may use {per_minute} tokens a minute, and {num_tokens} are not left; "
                f"try again in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )
        self._tokens.take(num_tokens, now_s)

    def reserve(self, num_tokens: int, now_s: float) -> int:
        """Charge work whose tokens are not known yet with the most they may be, or with a whole minute's where that is
        less; return what was charged. Raises: RateLimited."""
        reserved = min(num_tokens, self._tokens.per_minute)
        self.charge(reserved, now_s)
        return reserved

    def settle(self, num_reserved: int, num_used: int, now_s: float) -> None:
        """Charge what the work really used instead of what was reserved for it, even if the key has less left."""
        if num_used > num_reserved:
            self._tokens.take(num_used - num_reserved, now_s)
        else:
            self._tokens.give_back(num_reserved - num_used, now_s)

    def refund(self, num_tokens: int, now_s: float) -> None:
        """Return tokens that were charged and not used."""
        self._tokens.give_back(num_tokens, now_s)

    def headers(self, now_s: float) -> list[tuple[bytes, bytes]]:
        """Source: OpenAI API reference, rate limit headers: the limit, what remains, and when it is full again."""
        values: list[str] = []
        for bucket in (self._requests, self._tokens):
            left = max(0, int(bucket.remaining(now_s)))
            values += [str(bucket.per_minute), str(left), duration_text(bucket.wait_s(bucket.per_minute, now_s))]
        return [(name.encode(), text.encode()) for name, text in zip(RATE_LIMIT_HEADERS, values, strict=True)]


def duration_text(seconds: float) -> str:
    """As OpenAI writes durations: `20ms`, `1.5s`, `6m0s`."""
    ms = round(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    return f"{minutes}m{rest_ms / 1000:g}s" if minutes else f"{rest_ms / 1000:g}s"
