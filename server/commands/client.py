"""HTTP as the commands speak it with a server: address, API key, refusals. Standard library only."""

import argparse
import http.client
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from models.errors import BadRequest, ConfigError, ServingError, Unauthorized, Unavailable

TIMEOUT_S = 600.0
KEY_VARIABLES = ("FENHE_API_KEY", "OPENAI_API_KEY")
"""Where the key is when no option gives one: the first that is there counts."""
HOW_TO_GIVE_A_KEY = f"give yours with --api-key, or in {' or '.join(KEY_VARIABLES)}"


def add_api_key(parser: argparse.ArgumentParser) -> None:
    variables = " or ".join(KEY_VARIABLES)
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"the server's API key (or {variables}, which other users cannot see)"
    )


def find_api_key(option: str | None, environ: Mapping[str, str]) -> str | None:
    """The key of the option, else that of the first variable that holds one.

    Raises: ConfigError for a key that no header can carry; it is not shown.
    """
    given = [option, *(environ.get(name) for name in KEY_VARIABLES)]
    key = next((one.strip() for one in given if one and one.strip()), None)
    if key is not None and not key.isprintable():
        raise ConfigError("the API key has characters that no header can carry: no line breaks or other controls")
    return key


def post(url: str, path: str, body: object, api_key: str | None = None) -> bytes:
    """The body of a 200 answer. Raises: BadRequest, Unauthorized, Unavailable."""
    return _exchange(url, "POST", path, json.dumps(body), api_key)


def get(url: str, path: str, api_key: str | None = None) -> bytes:
    """The body of a 200 answer. Raises: BadRequest, Unauthorized, Unavailable."""
    return _exchange(url, "GET", path, None, api_key)


def _exchange(url: str, method: str, path: str, body: str | None, api_key: str | None) -> bytes:
    connection, base = connect(url)
    try:
        connection.request(method, f"{base}{path}", body, headers(api_key))
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise connection_failure(url, error) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise read_refusal(response.status, answer)
    return answer


def connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a server and the prefix of its addresses. Raises: ConfigError for a URL that cannot be used."""
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ConfigError(f"{url!r} is no server address; give one like http://127.0.0.1:8000")
    base = parts.path.rstrip("/").removesuffix("/v1")
    return kinds[parts.scheme](parts.hostname, parts.port, timeout=TIMEOUT_S), base


def headers(api_key: str | None) -> dict[str, str]:
    """The key in UTF-8, of which http.client must be given the bytes as Latin-1."""
    key = {} if api_key is None else {"authorization": f"Bearer {api_key}".encode().decode("latin-1")}
    return {"content-type": "application/json", **key}


def connection_failure(url: str, error: Exception) -> Unavailable:
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(f"no server answers at {url}; start one with `fenhe serve`, or name another with --url")
    return Unavailable(f"the connection to {url} failed: {error or type(error).__name__}")


def read_refusal(status: int, body: bytes) -> ServingError:
    """The error in a response; Unavailable if its body is not one of this API."""
    try:
        message = json.loads(body)["error"]["message"]
        if status == http.client.UNAUTHORIZED:
            return Unauthorized(f"{message}; {HOW_TO_GIVE_A_KEY}")
        return BadRequest(message)
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"the server answered {status}, but not as this API does; is the URL right?")
