"""What work without admission costs its key: the tokens it reads, as prompts of generations do."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import ServingError
from server.telemetry.request_record import Record


@dataclass(slots=True)
class Charge:
    """`num_tokens` is what is charged in the end: what may be used, until the work says what was."""

    num_tokens: int


@contextlib.contextmanager
def charged(record: Record, most_tokens: int) -> Iterator[Charge]:
    """Charge work that reads at most so many tokens; what is refused with an error costs nothing.

    Raises: RateLimited.
    """
    charge, meter = Charge(most_tokens), record.meter
    if meter is None:
        yield charge
        return
    reserved = meter.reserve(most_tokens, time.monotonic())
    try:
        yield charge
    except ServingError:
        charge.num_tokens = 0
        raise
    finally:
        meter.settle(reserved, charge.num_tokens, time.monotonic())
