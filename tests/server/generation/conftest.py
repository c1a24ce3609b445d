"""A request on its way through the server, without a connection around it."""

import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.scripted import Line, ScriptedEngine
from models.student.manifest import HeadKind
from router.cache.result_cache import CacheUse
from router.decision import RoutePreferences
from server.api.chat import ChatOrder
from server.context import Context, make_context
from server.generation.envelope import Envelope
from server.generation.routing import Order, route
from server.generation.supply import Supplier
from server.settings.config import Limits, ServerConfig
from server.students.admission_gate import Terms
from server.wire.chat import ChatRequest, Message
from tests.server.conftest import SCRIPT, make_engine, make_student, open_scripted

USE = CacheUse(reads=True, writes=True)


@dataclass(slots=True, kw_only=True)
class Backend:
    """A server's context with engines that run, and no HTTP."""

    context: Context
    engines: dict[str, ScriptedEngine]

    def order(self, prompt: str = "hello", key: str = "r", **fields: Any) -> ChatOrder:
        body = ChatRequest(model="auto", messages=[Message(role="user", content=prompt)], temperature=0.0, **fields)
        return ChatOrder(self.context, body, RoutePreferences(), Envelope(key=key))

    async def supplier(
        self, order: Order | None = None, use: CacheUse = USE, id: str = "r", head: HeadKind | None = None
    ) -> Supplier:
        """`head` is the one that the decision means, for every target; None leaves that to the policy."""
        order = order or self.order()
        routed = await route(self.context, order)
        if head is not None:
            fallbacks = tuple(dataclasses.replace(target, head=head) for target in routed.decision.fallbacks)
            decision = dataclasses.replace(routed.decision, head=head, fallbacks=fallbacks)
            routed = dataclasses.replace(routed, decision=decision, target=decision.target)
        return Supplier(
            context=self.context,
            order=order,
            routed=routed,
            plan=order.plan(routed),
            terms=Terms(deadline_s=math.inf, time_limit_s=math.inf),
            use=use,
            id=id,
        )


Open = Callable[..., Backend]


@pytest.fixture
async def open_backend(tmp_path: Path) -> AsyncIterator[Open]:
    """`open_backend({"one": {"hello": Line(...)}, "two": {}})`: students by name, each with its script."""
    async with contextlib.AsyncExitStack() as stack:

        def begin(
            scripts: Mapping[str, Mapping[str, Line]] | None = None,
            limits: Limits | None = None,
            head: HeadKind = "exact",
        ) -> Backend:
            engines = {
                name: make_engine({**script, **SCRIPT}, student=name, head=head)
                for name, script in (scripts or {"tiny": {}}).items()
            }
            students = [open_scripted(make_student(tmp_path, name), engine) for name, engine in engines.items()]
            context = make_context(dataclasses.replace(ServerConfig(), limits=limits or Limits()), students)
            context.attach()
            stack.push_async_callback(context.stop_engines)
            return Backend(context=context, engines=engines)

        yield begin
