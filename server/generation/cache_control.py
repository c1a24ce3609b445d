"""Whether a request may read and write the result cache: by the settings, its sampling, and what its client says."""

import re
from collections.abc import Iterable, Sequence

from engines.sequence import GenerationRequest
from router.cache.result_cache import BYPASS, CacheUse

_MAX_AGE = re.compile(r"max-age\s*=\s*\"?([0-9]{1,10})\"?")
_BROKEN_MAX_AGE = re.compile(r"max-age\b")


def cache_use(
    requests: Sequence[GenerationRequest], wanted: bool | None, headers: Iterable[str], *, is_enabled: bool
) -> CacheUse:
    """`wanted` is `fenhe.cache` of the body: true also allows answers sampled at random, false rules the cache out.
    `headers` are the values of all cache-control headers. Where body and headers differ, the stricter one counts.

    Source: RFC 9111, section 5.2.1; unknown directives are ignored.
    """
    is_wanted = all(map(is_repeatable, requests)) if wanted is None else wanted
    directives = {part.strip().lower() for header in headers for part in header.split(",")}
    if not is_enabled or not is_wanted or "no-store" in directives:
        return BYPASS
    if "no-cache" in directives:
        return CacheUse(writes=True)
    return CacheUse(reads=True, writes=True, max_age_s=_max_age_s(directives))


def is_repeatable(request: GenerationRequest) -> bool:
    """Whether the same request gives the same answer: the likeliest token each time, or a seed that was given."""
    return request.sampling.is_greedy or request.sampling.seed is not None


def _max_age_s(directives: Iterable[str]) -> float | None:
    """The smallest max-age. One that cannot be parsed counts as 0, which no cached answer meets.

    Source: RFC 9111, section 4.2.1.
    """
    ages = []
    for directive in directives:
        match = _MAX_AGE.fullmatch(directive)
        if match is not None:
            ages.append(float(match[1]))
        elif _BROKEN_MAX_AGE.match(directive):
            ages.append(0.0)
    return min(ages, default=None)
