"""Requests to remote students: what their upstream is asked, and how its answer is written."""

import time

from engines.remote_call import RemoteCall, Sender
from engines.sequence import GenerationRequest, SamplingParams
from models.errors import LoopDetected
from router.decision import Target
from server.context import Context
from server.generation.envelope import Envelope
from server.generation.plan import Job, Plan
from server.generation.prompts import Prompt
from server.generation.remote_body import (
    BOUNDS,
    HAVE_STREAM_OPTIONS,
    ID_PREFIX,
    USUAL_ANSWER_TOKENS,
    Fields,
    call_of,
    estimated_tokens,
    fields_of,
    is_stream,
    model_in,
    number_in,
    value_of,
    wants_usage,
)
from server.generation.remote_writer import RemoteBodyWriter
from server.generation.sequences import answered_model
from server.students.student import ServedStudent
from server.telemetry.tracing import TRACE_HEADERS
from server.wire import sse

HOPS_HEADER = "x-fenhe-hops"
"""The servers of our kind that a request has passed, so that one that comes back is noticed."""
MAX_HOPS = 8
ORIGIN_HEADERS = (HOPS_HEADER, *TRACE_HEADERS)
"""What is kept of a request's headers. Its key is not among them: no upstream gets it."""


def remote_prompts(envelope: Envelope) -> list[Prompt]:
    """One for the whole body, whatever is in it; its tokens are estimated."""
    return [Prompt(num_estimated=estimated_tokens(envelope.num_bytes))]


def remote_plan(context: Context, envelope: Envelope, target: Target, student: ServedStudent) -> Plan:
    """Raises: LoopDetected; BadRequest and its kinds for what must be known of the body and cannot be read."""
    remote = student.remote
    assert remote is not None
    fields = fields_of(envelope.raw)
    call = call_of(
        envelope.endpoint,
        fields,
        remote.models[target.path],
        num_bytes=envelope.num_bytes,
        max_answer_tokens=context.config.limits.max_completion_tokens,
        asks_usage=remote.config.asks_usage,
    )
    streams = is_stream(fields)
    job = Job(
        id=f"{ID_PREFIX[envelope.endpoint]}{envelope.key}",
        created=int(time.time()),
        model=answered_model(model_in(fields), student),
        path=target.path,
        fingerprint=student.fingerprint,
        requests=(_request(context, envelope, fields, target, call),),
        tokenizer=student.tokenizer,
        is_stream=streams,
        includes_usage=wants_usage(fields),
        done=sse.DONE if envelope.endpoint in HAVE_STREAM_OPTIONS else b"",
    )
    writer = RemoteBodyWriter(job, envelope.endpoint, envelope.request_id)
    return Plan(target=target, student=student, job=job, writer=writer)


def _request(
    context: Context, envelope: Envelope, fields: Fields, target: Target, call: RemoteCall
) -> GenerationRequest:
    return GenerationRequest(
        id=f"{envelope.key}-0",
        prompt_token_ids=(),
        path=target.path,
        sampling=_sampling(envelope.endpoint, fields, context.config.limits.max_completion_tokens),
        remote=call,
        sender=Sender(headers=_headers(context, envelope)),
    )


def _sampling(endpoint: str, fields: Fields, most: int | None) -> SamplingParams:
    """What admission and the result cache must know: how long the answer may be, and whether it can be repeated."""
    wanted = number_in(fields, BOUNDS[endpoint])
    bounds = [bound for bound in (wanted if (wanted or 0) > 0 else None, most) if bound is not None]
    temperature, seed = value_of(fields, "temperature", 1.0), value_of(fields, "seed")
    choices = number_in(fields, ("n",)) or 1
    return SamplingParams(
        max_tokens=max(1, choices) * min(bounds, default=USUAL_ANSWER_TOKENS),
        temperature=float(temperature) if isinstance(temperature, int | float) else 1.0,
        seed=seed if isinstance(seed, int) else None,
    )


def _headers(context: Context, envelope: Envelope) -> dict[str, str]:
    """Raises: LoopDetected."""
    hops = [hop.strip() for hop in envelope.headers.get(HOPS_HEADER, "").split(",") if hop.strip()]
    if context.instance in hops or len(hops) >= MAX_HOPS:
        raise LoopDetected(
            f"the request has come back to this server, or passed {MAX_HOPS} servers: an upstream leads in a circle"
        )
    trace = {name: envelope.headers[name] for name in TRACE_HEADERS if name in envelope.headers}
    return {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "user-agent": f"fenhe/{context.version}",
        "x-request-id": envelope.request_id,
        HOPS_HEADER: ",".join([*hops, context.instance]),
        **trace,
    }
