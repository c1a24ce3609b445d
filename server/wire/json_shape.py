"""How deeply a JSON text is nested and how many arrays and objects it has, without decoding it: decoders recurse, and a
deep text would overflow the stack; they make an object of each, which takes time and memory that its bytes do not show.
"""

from typing import NamedTuple

import numpy as np

from models.errors import BadRequest

PIECE_BYTES = 128 * 1024
"""So much is looked at in one go: others may run between two pieces."""
_BRACKETS = b"[]{}"
_REST = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STEPS = np.array([{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(byte), 0) for byte in range(256)], np.int32)


class JsonShape(NamedTuple):
    """`num_nodes` counts arrays and objects."""

    depth: int
    num_nodes: int


def check_shape(body: bytes, *, max_depth: int, max_nodes: int) -> None:
    """Raises: BadRequest."""
    if body.count(b"[") + body.count(b"{") <= min(max_depth, max_nodes):
        return
    shape = json_shape(body)
    if shape.depth > max_depth:
        raise BadRequest(f"the body is nested too deeply, in more than {max_depth} levels (limits.max_json_depth)")
    if shape.num_nodes > max_nodes:
        raise BadRequest(
            f"the body has {shape.num_nodes} arrays and objects, more than {max_nodes} (limits.max_json_nodes)"
        )


def json_shape(body: bytes) -> JsonShape:
    """Any shape for a text that is not JSON."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # every quote that is left begins or ends a string
    depth = deepest = num_nodes = 0
    is_in_string = False
    for start in range(0, len(plain), PIECE_BYTES):
        parts = plain[start : start + PIECE_BYTES].split(b'"')
        brackets = b"".join(parts[is_in_string::2]).translate(None, _REST)
        steps = _STEPS[np.frombuffer(brackets, np.uint8)]
        depths = np.cumsum(steps)
        deepest = max(deepest, depth + int(depths.max(initial=0)))
        depth += int(depths[-1]) if len(depths) else 0
        num_nodes += int(np.count_nonzero(steps > 0))
        is_in_string ^= len(parts) % 2 == 0
    return JsonShape(deepest, num_nodes)
