"""The limit of open files bounds connections."""

import logging
import resource

import pytest

from server.http.open_files import num_allowed, raise_limit


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit; this process keeps its own."""
    limit = [1024, 4096]

    def setrlimit(kind: int, both: tuple[int, int]) -> None:
        limit[:] = both

    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return limit


@pytest.mark.parametrize(
    ("soft", "expected"), [(1024, 960), (4159, 4095), (4160, 4096), (1 << 20, 4096), (10, 1), (64, 1), (-1, 4096)]
)
def test_num_allowed_leaves_a_reserve(limit: list[int], soft: int, expected: int) -> None:
    limit[0] = soft
    assert num_allowed(4096) == expected


@pytest.mark.parametrize(("hard", "is_warned"), [(4096, True), (4160, False), (resource.RLIM_INFINITY, False)])
def test_raise_limit_goes_to_the_hard_one(
    limit: list[int], caplog: pytest.LogCaptureFixture, hard: int, is_warned: bool
) -> None:
    limit[1] = hard
    raise_limit(4096)
    assert limit == [hard, hard]
    assert ("few open files" in caplog.text) is is_warned


def test_raise_limit_that_the_system_refuses_is_no_fault(
    limit: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(kind: int, both: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with caplog.at_level(logging.INFO):
        raise_limit(4096)
    assert limit == [1024, 4096]
    assert "exceeds maximum" in caplog.text
    assert "at most 960 connections" in caplog.text
