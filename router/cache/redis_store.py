"""Answers kept in Redis or Valkey, where every replica finds them.

Values hold the model's answers, readable by anyone who can read that server. Keys hold a student, a path and a hash.
A call that fails or takes too long costs the request its hit and nothing else.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from engines.breaker import Breaker
from models.errors import ConfigError, Unavailable
from router.cache.config import CacheConfig
from router.cache.store import StoreStatus

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

OPERATIONS = ("get", "put")
FLUSH_TIMEOUT_S = 30.0
DEFAULT_PORT = 6379
SCAN_COUNT = 1000
T = TypeVar("T")


class RedisStore:
    """Owned by the loop; connects at the first call."""

    def __init__(self, config: CacheConfig) -> None:
        """Raises: ConfigError for a URL that cannot be read, or when the client is not installed."""
        assert config.url is not None
        self._config = config
        self._client = _make_client(config, config.url)
        self._address = address_of(config.url)
        self._is_failure_logged = False
        self._breakers = {
            operation: Breaker(config.breaker_failures, config.breaker_pause_s) for operation in OPERATIONS
        }
        self._errors: Counter[tuple[str, str]] = Counter()

    async def get(self, key: str) -> bytes | None:
        value = await self._ask("get", lambda: self._client.get(self._name(key)))
        if value is None or isinstance(value, bytes):
            return value
        self._errors["get", "kind"] += 1
        raise Unavailable(
            f"the cache's server returned {type(value).__name__} instead of bytes; check what cache.url points to"
        )

    async def put(self, key: str, value: bytes) -> bool:
        ttl_s = self._config.ttl_s
        try:
            return bool(await self._ask("put", lambda: self._client.set(self._name(key), value, ex=ttl_s)))
        except Unavailable:
            return False

    async def flush(self, prefix: str) -> int:
        num_flushed = 0
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                pattern = _literal(self._name(prefix)) + "*"
                found: list[bytes] = []
                async for name in self._client.scan_iter(match=pattern, count=SCAN_COUNT):
                    found.append(name)
                    if len(found) == SCAN_COUNT:
                        num_flushed += await self._client.unlink(*found)
                        found.clear()
                num_flushed += await self._client.unlink(*found) if found else 0
        except Exception as error:
            self._errors["flush", type(error).__name__] += 1
            raise Unavailable(
                f"the cache's server could not be flushed ({type(error).__name__}, after {num_flushed} entries); "
                "check that it can be reached at cache.url, then flush again"
            ) from error
        return num_flushed

    def status(self) -> StoreStatus:
        return StoreStatus(
            errors=dict(self._errors),
            open_breakers={operation: breaker.is_open for operation, breaker in self._breakers.items()},
        )

    async def close(self) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._client.aclose()
        except Exception as error:  # a dead server must not delay the shutdown
            logger.debug("cache connection not closed error=%s", type(error).__name__)

    async def _ask(self, operation: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """The reply. Raises: Unavailable when the breaker is open, or when the call failed."""
        breaker = self._breakers[operation]
        if not breaker.allows():
            raise Unavailable(
                "the cache's server failed too often and is not asked for a while; see cache.breaker_pause_s"
            )
        try:
            async with asyncio.timeout(self._config.timeout_s):
                reply = await call()
        except Exception as error:  # the client may raise anything, and no request may fail because of it
            self._note_failure(operation, breaker, error)
            raise Unavailable(f"the cache's server failed ({type(error).__name__}); check that it answers") from error
        if breaker.succeed():
            self._is_failure_logged = False
            logger.info("cache server answers again address=%s operation=%s", self._address, operation)
        return reply

    def _note_failure(self, operation: str, breaker: Breaker, error: Exception) -> None:
        """Logs the first failure and each opening of the breaker, not every failure: there may be many."""
        kind = type(error).__name__
        self._errors[operation, kind] += 1
        if breaker.fail():
            logger.warning(
                "cache server left alone address=%s operation=%s pause_s=%g error=%s",
                self._address,
                operation,
                self._config.breaker_pause_s,
                kind,
            )
        elif not self._is_failure_logged:
            logger.warning(
                "cache server failed address=%s operation=%s error=%s: requests go on without their hits",
                self._address,
                operation,
                kind,
            )
        self._is_failure_logged = True

    def _name(self, key: str) -> str:
        return f"{self._config.namespace}:{key}"


def _make_client(config: CacheConfig, url: str) -> "Redis":
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigError("cache.url needs the Redis client: pip install 'fenhe[redis]'") from None
    try:
        pool = BlockingConnectionPool.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            max_connections=config.max_connections,
            timeout=config.timeout_s,
            socket_timeout=config.timeout_s,
            socket_connect_timeout=config.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        raise ConfigError("cache.url cannot be read; write it like redis://:PASSWORD@HOST:6379/0") from None
    return Redis.from_pool(pool)


def address_of(url: str) -> str:
    """The host and port of a URL, or the path of its socket, without user, password or options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = parts.hostname or "localhost"
    return f"[{host}]:{parts.port or DEFAULT_PORT}" if ":" in host else f"{host}:{parts.port or DEFAULT_PORT}"


def _literal(text: str) -> str:
    """A SCAN pattern that matches this text alone."""
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in text)
