"""A request of another API as the chat completion that answers it."""

from dataclasses import replace

from router.conversation import Conversation
from router.decision import RoutePreferences
from server.api.chat import ChatOrder
from server.api.field_names import FieldNames
from server.context import Context
from server.generation.envelope import Envelope
from server.generation.loosened import renamed
from server.generation.plan import Plan
from server.generation.prompts import Prompt
from server.generation.routing import Routed
from server.students.student import ServedStudent
from server.wire.chat import ChatRequest


class TranslatedOrder:
    """The order of a chat completion whose refusals and loosened places name the fields of the request it was made
    from. Whoever extends it gives `plan` a job and a writer of its own."""

    def __init__(
        self, context: Context, chat: ChatRequest, names: FieldNames, preferences: RoutePreferences, envelope: Envelope
    ) -> None:
        """Raises: BadRequest and its kinds."""
        self.preferences = preferences
        self.envelope = envelope
        self._names = names
        with names.used():
            self._chat = ChatOrder(context, chat, preferences, envelope)

    async def conversations(self) -> list[Conversation]:
        with self._names.used():
            return await self._chat.conversations()

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        with self._names.used():
            return await self._chat.encode(student)

    def plan(self, routed: Routed) -> Plan:
        """As a chat completion is planned, with usage in streams, which end without a mark."""
        with self._names.used():
            plan = self._chat.plan(routed)
        job = replace(plan.job, includes_usage=True, done=b"")
        return replace(plan, job=job, loosened=renamed(plan.loosened, self._names.of))
