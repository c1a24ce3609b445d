"""Looks at an upstream: does it answer, and which models does it have?

Source: OpenAI API reference, `GET /v1/models`.
"""

import asyncio
import logging
from collections.abc import Collection

import aiohttp
import msgspec

from engines.remote.upstream import Upstream

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 5.0
MAX_LISTED = 20
SOON_S = 1.0
"""How often an upstream that is gone is looked at."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decoder = msgspec.json.Decoder(_Models)


async def watch(
    session: aiohttp.ClientSession, upstream: Upstream, interval_s: float, wanted: Collection[str] = ()
) -> None:
    """Look at an upstream again and again, until cancelled. Warns, once, of models that are `wanted` and not there."""
    warned: list[str] = []
    while True:
        await look_at(session, upstream)
        missing = sorted(model for model in set(wanted) if not upstream.has(model))
        if missing and missing != warned:
            known = ", ".join(sorted(upstream.models or ())[:MAX_LISTED]) or "none"
            logger.warning("upstream lacks models url=%s missing=%s: it has %s", upstream.url, missing, known)
        warned = missing
        await asyncio.sleep(interval_s if upstream.is_there else min(SOON_S, interval_s))


async def look_at(session: aiohttp.ClientSession, upstream: Upstream) -> None:
    """Note whether an upstream answers, with any status below 500, and its models if it lists them. One that is working
    on requests may be too busy to answer: that makes it slow, not gone."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            async with session.get(
                f"{upstream.url}/models", headers=upstream.headers, allow_redirects=False
            ) as response:
                body = await response.read() if response.status == 200 else b""
                status = response.status
    except TimeoutError:
        upstream.is_slow = upstream.num_running > 0
        if not upstream.is_slow:
            _note(upstream, reason=f"does not answer within {CHECK_TIMEOUT_S:g} s")
        return
    except (aiohttp.ClientError, OSError) as error:
        _note(upstream, reason=f"does not answer ({type(error).__name__})")
        return
    upstream.is_slow = False
    _note(upstream, reason=f"answers with status {status}" if status >= 500 else None)
    if status == 200:
        upstream.models = _models_in(body)


def _models_in(body: bytes) -> frozenset[str] | None:
    try:
        return frozenset(model.id for model in _decoder.decode(body).data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _note(upstream: Upstream, reason: str | None) -> None:
    was_there, upstream.is_there = upstream.is_there, reason is None
    if reason is not None:
        upstream.reason = reason
    if was_there and reason is not None:
        logger.warning("upstream gone url=%s: it %s", upstream.url, reason)
    elif not was_there and reason is None:
        logger.info("upstream back url=%s", upstream.url)
