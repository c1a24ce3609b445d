import json
from typing import Any

import pytest

from engines.remote.failures import plain, read_error, refused
from models.errors import UpstreamBusy


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no", "code": 400}}, "no"),
        ({"error": "no"}, "no"),
        ({"message": "no", "code": "x"}, "no"),
        ({"detail": "no"}, "no"),
        ({"error": {"message": None}}, None),
        ({"error": None}, None),
        ({}, None),
        ([], None),
        ("no", "no"),
    ],
)
def test_errors_of_every_shape_are_read(body: Any, message: str | None) -> None:
    assert read_error(json.dumps(body).encode()).message == message


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_json_say_nothing(body: bytes) -> None:
    assert read_error(body).message is None


def test_words_for_clients_have_no_address_and_are_short() -> None:
    shown = plain("cannot reach http://10.1.2.3:8000/v1/x?key=sk-1 or 10.1.2.3:80\n\nagain" + "x" * 5000)
    assert "10.1.2.3" not in shown
    assert "sk-1" not in shown
    assert "\n" not in shown
    assert len(shown) < 1100


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("1e9", 3600.0), ("Wed, 21 Oct", 1.0), (None, 1.0)]
)
def test_retry_after_is_kept_within_reason(header: str | None, seconds: float) -> None:
    error = refused(429, b"", "m", header).failure.error
    assert isinstance(error, UpstreamBusy)
    assert error.retry_after_s == seconds


def test_nan_is_no_time() -> None:
    assert refused(429, b"", "m", "nan").failure.error.retry_after_s == 1.0


@pytest.mark.parametrize(
    ("status", "may_retry"), [(400, False), (422, False), (413, False), (404, True), (500, True), (401, True)]
)
def test_what_another_upstream_may_do_better(status: int, may_retry: bool) -> None:
    assert refused(status, b"", "m", None).failure.may_retry is may_retry
