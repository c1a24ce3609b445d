"""How an address is read before it is matched with a route, and which methods an address has."""

import re
from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

_SLASHES = re.compile("/{2,}")


def plain_path(path: str) -> str:
    """A path without slashes that stand for nothing: one at its end, or beside another, as where a base URL that ends
    with a slash and a path that begins with one were put together."""
    if not path.startswith("/"):  # `*`
        return path
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """The methods of an address, in order; those of any address for `OPTIONS *`; none where there is no such address.

    Source: RFC 9110, sections 9.3.7 and 10.2.1.
    """
    is_any = scope["path"] == "*"
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and (is_any or route.matches(scope)[0] is not Match.NONE):
            found |= route.methods or set()
    return sorted(found | {"OPTIONS"}) if found else []
