"""The soak's broken framing and reloads: what may come back, and what is blamed."""

import asyncio
import random
from collections.abc import Callable

import pytest

from loadtest import soak_faults
from loadtest.soak_faults import DAMAGED_SETTINGS, GOOD_SETTINGS, Fault, Reload, send_fault
from loadtest.soak_kinds import MIX, Sent, draw

FAULTS = (
    soak_faults.many_trailers,
    soak_faults.key_as_trailer,
    soak_faults.upgrade,
    soak_faults.half_closed,
    soak_faults.pipelined,
)


async def outcome_of(fault: Fault, answer: bytes) -> str | None:
    """What is wrong when a server reads until the client is done, and answers this."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return (await send_fault("127.0.0.1", port, fault)).problem


def answer(*statuses: str) -> bytes:
    return b"".join(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode() for status in statuses)


FAULT = Fault(segments=(b"a",), allowed=frozenset({("400", "200")}))


async def test_allowed_answers_are_right() -> None:
    assert await outcome_of(FAULT, answer("400", "200")) is None


@pytest.mark.parametrize("statuses", [(), ("400",), ("200",), ("200", "400"), ("400", "200", "200")])
async def test_other_answers_are_blamed(statuses: tuple[str, ...]) -> None:
    assert await outcome_of(FAULT, answer(*statuses)) is not None


async def test_server_that_is_gone_is_blamed() -> None:
    assert (await send_fault("127.0.0.1", 9, FAULT)).problem is not None


@pytest.mark.parametrize("make", FAULTS)
def test_fault_never_allows_a_server_error(make: Callable[[random.Random], Fault]) -> None:
    for seed in range(20):
        fault = make(random.Random(seed))
        assert fault.allowed
        assert not any(status.startswith("5") for statuses in fault.allowed for status in statuses)


def test_reload_is_damaged_or_good() -> None:
    texts = {soak_faults.reloaded(random.Random(seed)).text for seed in range(100)}
    assert texts == {GOOD_SETTINGS, *DAMAGED_SETTINGS}
    assert Reload(text=GOOD_SETTINGS).is_good
    assert not any(Reload(text=text).is_good for text in DAMAGED_SETTINGS)


def test_every_kind_is_drawn_and_has_a_key() -> None:
    rng = random.Random(0)
    drawn = [draw(rng) for _ in range(20_000)]
    assert {kind for kind, _ in drawn} == set(MIX)
    assert all(sent.key is not None for _, sent in drawn if isinstance(sent, Sent))
