"""`GET /` and its files: the console, built into `server/console/built` and the same for everybody.

The page holds no secrets and runs no script of anybody else: its policy allows this server's own files and nothing
that stands in the page itself.
"""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.access.keys import PAGE_FILES, PAGE_PATH, is_loopback
from server.api.handler import Handler
from server.context import Context

BUILT = Path(__file__).parents[1] / "console" / "built"
INDEX = "index.html"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
"""The one policy that may make HTML of text is DOMPurify's, which takes out what could run."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "vary": "accept-encoding",
}
AGAIN = "no-cache"
FOR_EVER = "public, max-age=31536000, immutable"
"""For files that have their content's hash in their names."""
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".woff2": "font/woff2"}


@dataclass(kw_only=True, frozen=True)
class PageFile:
    name: str
    body: bytes

    @cached_property
    def media_type(self) -> str:
        suffix = Path(self.name).suffix
        return TYPES.get(suffix) or mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:24]}"'

    @cached_property
    def zipped(self) -> bytes | None:
        """None where that is not shorter, as with fonts."""
        zipped = gzip.compress(self.body, mtime=0)
        return zipped if len(zipped) < len(self.body) else None


def read_page(folder: Path = BUILT) -> Mapping[str, PageFile]:
    """Every file of the built page by its address; empty where it was not built."""
    if not (folder / INDEX).is_file():
        return {}
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    named = {name: PageFile(name=name, body=body) for name, body in files.items()}
    return {PAGE_PATH if name == INDEX else f"/console/{name}": file for name, file in named.items()}


def page_handler(context: Context, files: Mapping[str, PageFile]) -> Handler:
    """404 for what is not there, and for all of it where the console is off."""

    async def page(request: Request) -> Response:
        if not is_console_on(context):
            raise HTTPException(404)
        if not files:
            raise HTTPException(404, "the console was not built: run `make console`")
        file = files.get(request.scope["path"])
        if file is None:
            raise HTTPException(404)
        return _respond(request, file)

    return page


def is_console_on(context: Context) -> bool:
    """By default where nobody but this machine's users, or holders of keys, can do anything with it."""
    enabled = context.config.console.enabled
    return enabled == "on" or (enabled == "auto" and (is_loopback(context.config.host) or len(context.keyring) > 0))


def _respond(request: Request, file: PageFile) -> Response:
    is_named_by_hash = request.scope["path"].startswith(PAGE_FILES)
    headers = HEADERS | {"etag": file.etag, "cache-control": FOR_EVER if is_named_by_hash else AGAIN}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    zipped = file.zipped if "gzip" in request.headers.get("accept-encoding", "") else None
    if zipped is not None:
        return Response(zipped, headers=headers | {"content-encoding": "gzip"}, media_type=file.media_type)
    return Response(file.body, headers=headers, media_type=file.media_type)
