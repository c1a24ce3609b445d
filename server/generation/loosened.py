"""How an answer says that it need not keep to all of a schema: a header with the places, and a line in the log."""

import logging
import re
from collections.abc import Callable, Sequence
from urllib.parse import quote

import msgspec

from engines.schema_loosening import Loosened

HEADER = "x-fenhe-loosened"
"""JSON pointers into the request, with commas; `+N` at the end stands for N more. Absent where nothing was loosened."""
MAX_PLACES = 16
MAX_PLACE_CHARS = 200

logger = logging.getLogger(__name__)

_INDEX = re.compile(r"\[(\d+)\]")


def header_of(places: Sequence[Loosened]) -> str:
    """ASCII without blanks inside a place, whatever the request's names are."""
    found = _pointers(places)
    more = [] if len(found) <= MAX_PLACES else [f"+{len(found) - MAX_PLACES}"]
    return ", ".join([*found[:MAX_PLACES], *more])


def log_loosened(places: Sequence[Loosened], request_id: str) -> None:
    reasons = "; ".join(dict.fromkeys(place.problem for place in places[:MAX_PLACES]))
    logger.warning(
        "schema loosened id=%s places=%s why=%s", request_id, header_of(places), quote(reasons, safe=" `;,:")
    )


def renamed(places: Sequence[Loosened], name: Callable[[str], str]) -> tuple[Loosened, ...]:
    """The places under the names that another API has for the fields: `name` says what one is called there."""
    return tuple(msgspec.structs.replace(place, where=name(place.where)) for place in places)


def _pointers(places: Sequence[Loosened]) -> list[str]:
    return list(dict.fromkeys(_pointer_of(place) for place in places))


def _pointer_of(place: Loosened) -> str:
    """Source: RFC 6901, section 6. One that is too long is cut to the part that its place is in."""
    field = "/" + _INDEX.sub(r"/\1", place.where).replace(".", "/")
    pointer = field + quote(place.pointer, safe="/~:@!$&'()*+;=", errors="replace")
    while len(pointer) > MAX_PLACE_CHARS and "/" in pointer[1:]:
        pointer = pointer.rpartition("/")[0]
    return pointer
