"""What is wrong with bytes that are no HTTP request, or none that this server takes, in words."""

from collections.abc import Sequence

from httptools import HttpParserError, HttpParserInvalidURLError

Headers = Sequence[tuple[bytes, bytes]]

VERSIONS = ("1.0", "1.1")
INVALID = "Invalid HTTP request received."
NO_HTTP_2 = "this server speaks HTTP/1.1 only: use a client without HTTP/2, or a proxy that translates it"
NO_TLS = "this server speaks plain HTTP and was sent TLS: use http://, or a proxy that ends TLS"
_ONLY_CHUNKED = "only chunked is; compress with content-encoding: gzip"
_TLS_HANDSHAKE = b"\x16\x03"

_CAUSES = {
    "invalid method": "the request does not begin with a method of HTTP",
    "expected http/": "the request line is not METHOD ADDRESS HTTP/1.1; a blank in an address is written %20",
    "invalid http version": "the request line ends with no version of HTTP that this server speaks: 1.0 or 1.1",
    "can't be present with": "a request has content-length or transfer-encoding, not both",
    "invalid `transfer-encoding`": f"the transfer-encoding is not supported, {_ONLY_CHUNKED}",
    "in content-length": "the content-length is not a number",
    "duplicate content-length": "the request has two content-length headers",
    "header token": "the name of a header has a character that names may not have",
    "header value char": "the value of a header has a control character",
    "whitespace after header": "a header goes on in a second line, which HTTP no longer allows",
    "chunk size": "the size of a chunk is not a hexadecimal number",
    "crlf": "a line does not end with CR LF",
}
"""By a part of what the parser says, in lower case."""


def why_no_request(error: HttpParserError, piece: bytes, method: bytes, headers: Headers) -> str:
    """`piece` is what the parser was given last, `method` and `headers` are what it has read of the request."""
    if piece.startswith(_TLS_HANDSHAKE):
        return NO_TLS
    if method == b"PRI":
        return NO_HTTP_2
    if (refusal := _wrong_transfer_coding(headers)) is not None:
        return refusal
    if isinstance(error, HttpParserInvalidURLError):
        return "the address has a character that must be percent-encoded"
    said = str(error).lower()
    return next((cause for part, cause in _CAUSES.items() if part in said), INVALID)


def why_wrong_head(version: str, method: bytes, headers: Headers) -> str | None:
    """What is wrong with a whole head; None for nothing."""
    num_hosts = sum(name == b"host" for name, _ in headers)
    if version not in VERSIONS:
        return NO_HTTP_2
    if method == b"CONNECT":
        return "this server is no proxy: it does not answer CONNECT"
    if num_hosts > 1 or (num_hosts == 0 and version == "1.1"):  # RFC 9112 3.2
        return f"a request needs one Host header, this one has {num_hosts}"
    return _wrong_transfer_coding(headers)


def _wrong_transfer_coding(headers: Headers) -> str | None:
    """What is said of a transfer coding that is not `chunked` alone; None where there is none.

    Source: RFC 9112 6.1. Compressed bodies have a content coding instead.
    """
    codings = b", ".join(value.strip() for name, value in headers if name == b"transfer-encoding")
    if codings.lower() in (b"", b"chunked"):
        return None
    shown = codings[:100].decode("latin-1")
    return f"the transfer-encoding {shown!r} is not supported, {_ONLY_CHUNKED}"
