"""What a body has that cannot change an answer, and is therefore ignored: which names, and a record of those it had.

Nothing here logs or counts: see `server/telemetry/ignored.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

HARMLESS: Mapping[str, str] = {
    "user": "names the end user for abuse reports; nothing here reads it",
    "metadata": "labels for stored answers; nothing is stored",
    "store": "nothing is stored, whatever it says",
    "service_tier": "there is one tier",
    "safety_identifier": "names the end user for abuse reports; nothing here reads it",
    "prompt_cache_key": "a hint for cache placement; the prefix cache goes by content",
    "prompt_cache_retention": "a hint for cache life; the prefix cache goes by use and memory",
    "prompt_cache_options": "a hint for cache placement and life",
    "reasoning_effort": "how long to think before the answer; only some chat templates read it",
    "reasoning": "how long to think before the answer, and what to show of it; no student does",
    "thinking_budget": "how long to think before the answer; no student does",
    "verbosity": "a wish for a longer or shorter text, which no student was trained on",
    "thinking": "whether and how long to think before the answer; no student was trained on it",
    "cache_control": "a hint for cache placement",
    "context_management": "when to shorten a long conversation; a prompt that is too long is refused",
    "speed": "there is one tier",
    "container": "where a provider's tools run; there are none",
    "inference_geo": "where to compute; this server is where it is",
    "fallbacks": "models to ask where one declines; no student declines",
    "fallback_credit_token": "who pays after a model declined",
    "billing_policy": "who pays",
    "diagnostics": "figures of another server beside the answer",
    "user_profile_id": "names the end user; nothing here reads it",
    "workspace_id": "names an account; the API key does that",
    "anthropic_version": "the version of the API, as some gateways send it",
    "anthropic_beta": "names trial features, as some gateways send it; each feature's own fields say what is asked for",
    "betas": "names trial features, as some gateways send it; each feature's own fields say what is asked for",
    "prediction": "a guess of the answer, to be faster where it is right",
    "max_tool_calls": "bounds calls of a provider's own tools; there are none",
    "truncation": "whether a prompt that is too long is shortened; it is refused",
    "client_metadata": "labels of the client",
    "include_reasoning": "whether to show thoughts; there are none",
    "separate_reasoning": "where to show thoughts; there are none",
    "stream_reasoning": "when to show thoughts; there are none",
    "reasoning_format": "where to show thoughts; there are none",
    "request_id": "an id of the client's own; ours comes from the header x-request-id",
    "rid": "an id of the client's own; ours comes from the header x-request-id",
    "cache_prompt": "a hint; the prefix cache is always on where the settings have it",
    "guided_decoding_backend": "which library keeps an answer to its form; there is one",
    "id_slot": "a hint for cache placement",
    "keep_alive": "how long to keep the model in memory; students stay",
    "kv_transfer_params": "where another server has the prompt's KV; it is computed here",
    "provider": "which company of a broker answers; there is none",
    "route": "which model of a broker answers when one fails; there is none",
    "dry_allowed_length": "says more about `dry_multiplier`",
    "dry_base": "says more about `dry_multiplier`",
    "dry_penalty_last_n": "says more about `dry_multiplier`",
    "dry_sequence_breakers": "says more about `dry_multiplier`",
    "dynatemp_exponent": "says more about `dynatemp_range`",
    "mirostat_eta": "says more about `mirostat`",
    "mirostat_tau": "says more about `mirostat`",
    "repeat_last_n": "says more about `repeat_penalty`",
    "xtc_threshold": "says more about `xtc_probability`",
    "timings_per_token": "figures of another server beside the answer",
    "return_progress": "figures of another server beside the answer",
}
"""Top-level fields accepted although nothing reads them, and why ignoring them cannot change an answer."""

BOOKKEEPING = frozenset(
    (
        "annotations",
        "audio",
        "cache_control",
        "defer_loading",
        "disable_any_whitespace",
        "disable_fallback",
        "extra_content",
        "id",
        "include_obfuscation",
        "index",
        "input_examples",
        "parsed",
        "parsed_arguments",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "status",
        "thinking_blocks",
        "timestamp",
    )
)
"""What clients and other servers commonly put into messages, parts and tools; counted by these names."""

OTHER = "other"
MAX_PLACES = 20
"""So many places are logged of one request."""
MAX_PLACE_CHARS = 200


@dataclass(slots=True)
class Ignored:
    """What was ignored of one body: `places` are the first ones, `labels` a bounded set of their names."""

    num: int = 0
    places: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.num > 0

    def add(self, name: str, owner: str = "") -> None:
        """Record that the field `name` of `owner` (`messages[1]`; empty: the body) was ignored."""
        self.num += 1
        self.labels.add(label_of(name))
        if len(self.places) < MAX_PLACES:
            self.places.append(f"{owner}.{name}"[:MAX_PLACE_CHARS] if owner else name[:MAX_PLACE_CHARS])


def label_of(name: str) -> str:
    """The name under which a field is counted: its own if it is well known, else `other`. A client chooses names."""
    return name if name in HARMLESS or name in BOOKKEEPING else OTHER
