"""What the server says its bounded caches hold: memory that it is allowed to keep."""

import httpx

from loadtest.aftermath import series

BOUNDED = ("fenhe_prefix_cache_bytes", "fenhe_cache_bytes", "fenhe_grammar_bytes")


def cached_bytes(url: str) -> int:
    """Of prefixes, answers and grammars."""
    return bytes_in(httpx.get(f"{url}/metrics", timeout=30.0).text)


def bytes_in(metrics: str) -> int:
    """Raises: KeyError when a cache is missing: one that is not counted must not look like one that is empty."""
    found = series(metrics)
    return int(sum(found[name] for name in BOUNDED))
