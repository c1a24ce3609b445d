"""The names by which a server without keys may be called: a page elsewhere can point a name of its own at this machine.

That is DNS rebinding: the browser takes the page and this server for one origin, and lets the page read answers. What
it cannot change is the Host header, which has the page's name.
"""

import re

from models.errors import Forbidden
from server.access.keys import METRICS_PATH, OPEN_PATHS, is_loopback
from server.settings.config import ServerConfig

_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::\d*)?")


def require_known_host(config: ServerConfig, num_keys: int, path: str, host: str | None) -> None:
    """Only for a server without keys that listens on this machine alone. Without a Host there is no browser.

    Raises: Forbidden for a name that is neither this machine's nor in `allowed_hosts`.
    """
    if num_keys or host is None or path in OPEN_PATHS or path == METRICS_PATH or not is_loopback(config.host):
        return
    name = name_of(host)
    if is_loopback(name) or name.endswith(".localhost") or name in map(name_of, config.allowed_hosts):
        return
    raise Forbidden(
        f"this server has no API keys and answers to the names of this machine only, not to Host {host[:100]!r}: name "
        "it in allowed_hosts (--allowed-hosts, FENHE_ALLOWED_HOSTS), or make keys"
    )


def name_of(host: str) -> str:
    """The name of a Host header, without port, brackets and the dot of a full name; empty for what is none."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found["ipv6"] or found["name"] or "").lower().removesuffix(".")
