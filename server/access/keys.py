"""API keys: who may use the server, as which tenant, within which limits. Only hashes are kept."""

import hashlib
import hmac
import ipaddress
import secrets
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from models.bounds import Positive
from models.errors import ConfigError, Forbidden, Problem, RateLimited, ServingError, Unauthorized
from router.decision import Priority
from server.access.rate_limit import KeyLimits, Meter
from server.settings.config import KeysConfig, ServerConfig, Sha256
from server.settings.suggestions import wrong_value

KEY_PREFIX = "fk-"
OPEN_PATHS = frozenset({"/health", "/readyz", "/startup"})
"""Probes: orchestrators have no key."""
METRICS_PATH = "/metrics"
PAGE_PATH = "/"
PAGE_FILES = "/console/assets/"
"""The console's page and its files, the same for everybody: browsers send no key when they open a page."""
ADMIN_PREFIXES = ("/admin/", "/debug/")
"""Paths that need the admin key instead."""
HTTP_BLANKS = " \t"
API_KEY_HEADER = "x-api-key"
"""Where Anthropic's clients send a key; others use `Authorization: Bearer`."""
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]


@dataclass(slots=True, kw_only=True, frozen=True)
class Key:
    """`max_priority` is the highest it may ask for. `online_quality` says whether answers to its tenant may be scored.
    Keys of one tenant share its turn in the queue and its cache."""

    name: str
    sha256: str
    tenant: str
    limits: KeyLimits
    max_priority: Priority = Priority.NORMAL
    online_quality: bool = True


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `[[key]]` table of a key file. `tenant` defaults to the name, the limits to those of `[keys]`. One key with
    `online_quality` false is enough for its tenant."""

    name: Name
    sha256: Sha256
    tenant: Name | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_concurrent: Positive | None = None
    max_priority: Priority = Priority.NORMAL
    online_quality: bool = True


def load_keys(config: KeysConfig) -> tuple[Key, ...]:
    """Every key of the settings and of the key file.

    Raises: ConfigError that lists what is wrong, and shows no key and no hash.
    """
    entries = [] if config.file is None else _read_file(config.file)
    entries += [KeyEntry(name=f"key-{sha256[:8].lower()}", sha256=sha256) for sha256 in config.sha256]
    problems = []
    for what, values in (
        ("name", [entry.name for entry in entries]),
        ("sha256", [entry.sha256.lower() for entry in entries]),
    ):
        twice = {entry.name for entry, value in zip(entries, values, strict=True) if values.count(value) > 1}
        said = f"two API keys have the same {what}: {', '.join(sorted(twice))}"
        problems += [Problem(setting="keys.file", others=("keys.sha256",), said=said)] if twice else []
    if problems:
        raise ConfigError(*problems)
    private = {_tenant_of(entry) for entry in entries if not entry.online_quality}
    return tuple(_make_key(entry, config, online_quality=_tenant_of(entry) not in private) for entry in entries)


def _tenant_of(entry: KeyEntry) -> str:
    return entry.tenant or entry.name


def _read_file(file: Path) -> list[KeyEntry]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _wrong_file(f"key file {file}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _wrong_file(f"key file {file}: is not TOML: {error}") from None
    tables = table.pop("key", [])
    if table or not isinstance(tables, list) or not tables:
        raise _wrong_file(
            f"key file {file}: must hold [[key]] tables and nothing else; `fenhe keys make NAME` prints one"
        )
    problems = []
    entries = []
    for index, one in enumerate(tables):
        try:
            entries.append(msgspec.convert(one, KeyEntry))
        except msgspec.ValidationError as error:
            why = wrong_value(error, Priority)
            problems.append(f"key file {file}: key[{index}]: {why}; `fenhe keys make NAME` prints a valid one")
    if problems:
        raise _wrong_file(*problems)
    return entries


def _wrong_file(*said: str) -> ConfigError:
    return ConfigError(*(Problem(setting="keys.file", said=one) for one in said))


def _make_key(entry: KeyEntry, config: KeysConfig, *, online_quality: bool) -> Key:
    return Key(
        name=entry.name,
        sha256=entry.sha256.lower(),
        tenant=_tenant_of(entry),
        limits=KeyLimits(
            requests_per_minute=entry.requests_per_minute or config.requests_per_minute,
            tokens_per_minute=entry.tokens_per_minute or config.tokens_per_minute,
            max_concurrent=entry.max_concurrent or config.max_concurrent,
        ),
        max_priority=entry.max_priority,
        online_quality=online_quality,
    )


class Keyring:
    """The keys in force and the use of each. Owned by the loop."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys: tuple[Key, ...] = ()
        self._meters: dict[str, Meter] = {}
        self.refusals: Counter[str] = Counter()
        self.replace(keys)

    def count(self, error: ServingError) -> None:
        """Count a refusal: no key, no permission, or a limit of the key."""
        if isinstance(error, Unauthorized | Forbidden | RateLimited):
            self.refusals[error.code] += 1

    def __len__(self) -> int:
        return len(self._keys)

    def replace(self, keys: Sequence[Key]) -> None:
        """Replace all keys at once. A key that stays keeps its use."""
        now_s = time.monotonic()
        meters: dict[str, Meter] = {}
        for key in keys:
            meter = self._meters.get(key.sha256)
            if meter is None:
                meter = Meter(key.limits, now_s)
            else:
                meter.resize(key.limits, now_s)
            meters[key.sha256] = meter
        self._keys, self._meters = tuple(keys), meters

    def find(self, authorization: str, api_key: str = "") -> Key | None:
        """The key of an Authorization header, or else of an x-api-key header: some clients send both, one of them for
        another server. Comparing takes the same time for every key."""
        of_bearer, of_header = self._find(bearer_digests(authorization)), self._find(key_digests(api_key))
        return of_bearer or of_header

    def _find(self, digests: Sequence[str]) -> Key | None:
        found = None
        for key in self._keys:
            if is_one_of(key.sha256, digests):
                found = key
        return found

    def require(self, authorization: str, api_key: str = "") -> Key:
        """Raises: Unauthorized."""
        key = self.find(authorization, api_key)
        if key is None:
            sent = "Authorization: Bearer KEY" if authorization else f"{API_KEY_HEADER}: KEY"
            raise Unauthorized(
                f"this server does not know the API key in `{sent}`; ask its operator for one"
                if authorization or api_key
                else f"this server needs an API key: send `Authorization: Bearer KEY` or `{API_KEY_HEADER}: KEY`"
            )
        return key

    def meter(self, key: Key) -> Meter:
        return self._meters[key.sha256]


def needs_key(path: str, config: ServerConfig) -> bool:
    """Whether this path needs an API key, once there are any; unknown paths do too."""
    if path in OPEN_PATHS or path == PAGE_PATH or path.startswith((PAGE_FILES, *ADMIN_PREFIXES)):
        return False
    return path != METRICS_PATH or config.keys.metrics


def bearer_digests(authorization: str) -> tuple[str, ...]:
    """The SHA-256 of the key in an Authorization header; none where no bearer key is."""
    scheme, _, given = authorization.partition(" ")
    return key_digests(given) if scheme.lower() == "bearer" else ()


def key_digests(given: str) -> tuple[str, ...]:
    """The SHA-256 of a key in a header, whose bytes came as Latin-1; none of an empty one.

    Keys are text in UTF-8 when their hash is made, but some clients (Python's http.client) send Latin-1: the second
    digest is that of such a key. Only blanks of HTTP are stripped: any other may be a byte of the last letter.
    """
    key = given.strip(HTTP_BLANKS)
    if not key:
        return ()
    return tuple(
        hashlib.sha256(sent).hexdigest() for sent in (key.encode("latin-1", "replace"), key.encode("utf-8", "replace"))
    )


def is_one_of(sha256: str, digests: Sequence[str]) -> bool:
    """Comparing takes the same time whatever the digests are."""
    return sum(hmac.compare_digest(sha256, digest) for digest in digests) > 0


def priority_of(key: Key | None, wanted: Priority | None) -> Priority:
    """The priority of a request: by default normal, or the key's own maximum where that is lower.

    Raises: Forbidden for a priority above the key's; on a server without keys every priority is allowed.
    """
    ranks = tuple(Priority)
    highest = Priority.HIGH if key is None else key.max_priority
    if wanted is None:
        return max(Priority.NORMAL, highest, key=ranks.index)
    if ranks.index(wanted) < ranks.index(highest):
        raise Forbidden(
            f"this key may not ask for priority {wanted.value!r}, at most for {highest.value!r}", param="fenhe.priority"
        )
    return wanted


def check_exposure(config: ServerConfig, keys: Sequence[Key]) -> None:
    """Raises: ConfigError when a server without keys would listen beyond this machine."""
    if keys or config.allow_no_keys or is_loopback(config.host):
        return
    said = (
        f"without API keys, everybody who reaches {config.host or '*'}:{config.port} could use this server: name a key "
        "file with --keys-file (`fenhe keys make NAME` makes a key), or listen on --host 127.0.0.1, or say that this "
        "is wanted with --allow-no-keys true"
    )
    raise ConfigError(Problem(setting="host", others=("keys.file", "allow_no_keys"), said=said))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_secret() -> str:
    """A new key: 256 random bits, so that a plain hash of it is safe to keep."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def describe_entry(name: str, key: str) -> str:
    """The `[[key]]` table of a key, without the key itself. Raises: ConfigError for an invalid name."""
    sha256 = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        msgspec.convert({"name": name, "sha256": sha256}, KeyEntry)
    except msgspec.ValidationError:
        raise ConfigError(
            f"a key cannot be called {name[:100]!r}: use at most 64 letters, digits and `. _ @ -`"
        ) from None
    return f'[[key]]\nname = "{name}"\nsha256 = "{sha256}"'
