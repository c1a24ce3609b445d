"""The bytes that tokens stand for, by how a vocabulary spells them."""

import re

SPACE_MARK = "\u2581"
"""How sentencepiece writes a space."""


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Source: GPT-2's encoder: printable Latin-1 stands for itself, the rest follow from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_BYTE_OF = {character: byte for byte, character in byte_alphabet().items()}


_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; one that uses other characters was added as plain text."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """Bytes of a sentencepiece token: `<0x0A>` is the one byte, anything else its text."""
    if _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(token[3:5])
    return token.replace(SPACE_MARK, " ").encode()
