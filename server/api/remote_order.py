"""A request that only remote students can answer: its body is passed on, and of its fields only what routing needs is
read. What the upstream does not support, it refuses itself."""

import msgspec

from models.errors import InvalidParameter
from router.conversation import Conversation
from router.decision import RoutePreferences
from server.context import Context
from server.generation.envelope import Envelope
from server.generation.plan import Plan
from server.generation.prompts import Prompt
from server.generation.remote import remote_plan, remote_prompts
from server.generation.remote_body import ID_PREFIX, Fields, conversation_in, value_of
from server.generation.routing import Routed
from server.students.student import ServedStudent, find_model
from server.wire.base import FenheOptions


class RemoteOrder:
    """One request to be routed among remote students."""

    def __init__(self, context: Context, fields: Fields, preferences: RoutePreferences, envelope: Envelope) -> None:
        self.preferences = preferences
        self.envelope = envelope
        self._context = context
        self._fields = fields

    async def conversations(self) -> list[Conversation]:
        envelope, fields = self.envelope, self._fields
        run = self._context.long_work.run
        return [await run(envelope.num_bytes, lambda: conversation_in(fields), envelope.tenant)]

    async def encode(self, student: ServedStudent) -> list[Prompt]:
        return remote_prompts(self.envelope)

    def plan(self, routed: Routed) -> Plan:
        return remote_plan(self._context, self.envelope, routed.target, routed.student)


def is_for_remote(context: Context, endpoint: str, model: str) -> bool:
    """Whether only remote students can answer a request for this model. Raises: UnknownModel."""
    if endpoint not in ID_PREFIX or not any(student.remote for student in context.students):
        return False
    named = find_model(context.students, model).student
    return all(student.remote for student in context.students if named in (None, student.name))


def options_in(fields: Fields) -> FenheOptions | None:
    """`fenhe` of a body. Raises: InvalidParameter."""
    found = value_of(fields, "fenhe")
    try:
        return None if found is None else msgspec.convert(found, FenheOptions)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"`fenhe`: {error}", param="fenhe") from None
