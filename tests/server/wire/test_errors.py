"""The map from errors to statuses covers the whole tree."""

from collections.abc import Iterator

import msgspec
import pytest

from models.errors import (
    DeadlineExceeded,
    InvalidParameter,
    PathLoading,
    QueueFull,
    RequestTooLarge,
    ServingError,
    StepFailed,
)
from server.wire.errors import STATUS, body_of, headers_of, status_of


def kinds(root: type[ServingError]) -> Iterator[type[ServingError]]:
    yield root
    for child in root.__subclasses__():
        yield from kinds(child)


def test_status_map_is_the_error_tree() -> None:
    ours = {kind for kind in kinds(ServingError) if kind.__module__ == "models.errors"}
    assert set(STATUS) == ours


def test_status_of_an_unmapped_kind_is_its_parent_s() -> None:
    class Special(QueueFull):
        pass

    assert status_of(Special("x")) == 429


def test_codes_are_distinct_words() -> None:
    codes = [kind.code for kind in STATUS]
    assert len(set(codes)) == len(codes)


def test_body_has_the_four_required_keys_and_a_string_code() -> None:
    error = msgspec.json.decode(body_of(InvalidParameter("wrong", param="n")))["error"]
    assert error == {"message": "wrong", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}


def test_body_is_short_whatever_the_message() -> None:
    error = InvalidParameter(f"`n`: {'x' * 10_000} is no number", param="n" * 10_000)
    detail = msgspec.json.decode(body_of(error))["error"]
    assert len(body_of(error)) < 5000
    assert detail["message"].startswith("`n`: xxx")
    assert detail["message"].endswith("xxx is no number")
    assert len(detail["param"]) == 200


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (QueueFull("x"), (b"1", b"1000")),
        (QueueFull("x", retry_after_s=0.0), (b"1", b"1")),
        (PathLoading("x", retry_after_s=2.0), (b"2", b"2000")),
        (PathLoading("x", retry_after_s=2.0101), (b"3", b"2011")),
    ],
)
def test_retry_after_is_rounded_up(error: ServingError, told: tuple[bytes, bytes]) -> None:
    expected = [(b"x-should-retry", b"true"), (b"retry-after", told[0]), (b"retry-after-ms", told[1])]
    assert headers_of(error) == expected


def test_clients_are_told_not_to_retry_what_would_fail_again() -> None:
    for error in (DeadlineExceeded("x"), RequestTooLarge("x")):
        assert headers_of(error) == [(b"x-should-retry", b"false")]


def test_retry_after_is_absent_where_trying_again_is_useless() -> None:
    assert headers_of(StepFailed("x")) == []
