"""A damaged student that an operator adds to a running server: it must never be ready, and it goes again."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtest.chaos.processes import damage
from loadtest.ledger import Outcome
from loadtest.served import ADMIN_KEY

NAME = "damaged"
STUDENTS = "/admin/students"
PATIENCE_S = 300.0
"""It is read and compared with its checksums beside everything else that the server has to do."""
REFUSED = frozenset({"failed", "unhealthy"})
UNDER_WAY = frozenset({"opening", "loading"})
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}


@dataclass(slots=True, kw_only=True)
class DamagedStudents:
    """Adds a damaged copy of the server's first student, made in `folder` at first need, and removes it; one at a time.

    Nothing of it may remain, or the next one is refused.
    """

    folder: Path
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add_one(self, client: httpx.AsyncClient) -> Outcome:
        async with self._lock:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await self._add_one(client)
            except TimeoutError:
                return Outcome(what="no end", problem=f"a damaged student was there for more than {PATIENCE_S:g} s")
            except httpx.HTTPError as error:
                return Outcome(what="broken", problem=f"the connection failed: {type(error).__name__}: {error}")

    async def _add_one(self, client: httpx.AsyncClient) -> Outcome:
        if not self.folder.exists():
            source = Path((await _students(client))[0]["folder"])
            self.folder.mkdir()
            await asyncio.to_thread(damage, source, self.folder)
        added = await client.post(STUDENTS, json={"folder": str(self.folder), "name": NAME}, headers=HEADERS)
        if added.status_code != 202:
            return Outcome(what=str(added.status_code), problem=f"not taken: {added.text[:200]}")
        status = await _status_at_last(client)
        removed = await client.delete(f"{STUDENTS}/{NAME}", headers=HEADERS)
        while await _status(client) is not None:
            await asyncio.sleep(0.1)
        problem = None if status in REFUSED else f"a damaged student was {status}"
        if removed.status_code != 202:
            problem = f"not removed: {removed.text[:200]}"
        return Outcome(what=str(status), problem=problem)


async def _students(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    reply = await client.get(STUDENTS, headers=HEADERS)
    students: list[dict[str, Any]] = reply.raise_for_status().json()["students"]
    return students


async def _status(client: httpx.AsyncClient) -> str | None:
    """None: there is none."""
    return next((str(one["status"]) for one in await _students(client) if one["name"] == NAME), None)


async def _status_at_last(client: httpx.AsyncClient) -> str | None:
    while (status := await _status(client)) in UNDER_WAY:
        await asyncio.sleep(0.1)
    return status
