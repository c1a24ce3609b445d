"""How deeply a JSON text is nested, without decoding it: decoders recurse, and a deep text would overflow the stack."""

import re

import numpy as np

from models.errors import BadRequest

# Possessive, and the closing quote may be missing: every quote is visited once, whatever the text.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = b"[]{}"
_REST = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STEPS = np.array([{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(byte), 0) for byte in range(256)], np.int32)


def check_depth(body: bytes, max_depth: int) -> None:
    """Raises: BadRequest."""
    if body.count(b"[") + body.count(b"{") > max_depth and json_depth(body) > max_depth:
        raise BadRequest(f"the body is nested too deeply, in more than {max_depth} levels (limits.max_json_depth)")


def json_depth(body: bytes) -> int:
    """Levels of arrays and objects; any number for a text that is not JSON."""
    brackets = _STRING.sub(b"", body).translate(None, _REST)
    depths = np.cumsum(_STEPS[np.frombuffer(brackets, np.uint8)])
    return int(depths.max(initial=0))
