"""How the fuzz tests search: the same few examples every time, or as many new ones as `FUZZ_EXAMPLES` says."""

import http.client
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
IDLE_S = 2.0
MESSAGES = [{"role": "user", "content": "hello"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "auto",
        "messages": MESSAGES,
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "stop": ["x"],
        "seed": 7,
        "logit_bias": {"5": 1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"b": {"type": "integer"}}}},
        },
        "metadata": {"a": "b"},
        "min_tokens": 1,
        "chat_template_kwargs": {"enable_thinking": False},
        "fenhe": {"task": "math", "path": "shallow"},
    },
    "/v1/completions": {
        "model": "auto",
        "prompt": ["hello", "there"],
        "max_tokens": 3,
        "echo": True,
        "logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "frequency_penalty": 0.1,
        "stop_token_ids": [5],
        "include_stop_str_in_output": True,
        "structured_outputs": {"choice": ["yes", "no"]},
        "fenhe": {"priority": "low"},
    },
    "/v1/responses": {
        "model": "auto",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}", "id": "fc_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "no"}]},
        ],
        "tools": [
            {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False},
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "look"}],
        },
        "reasoning": {"summary": "auto"},
        "instructions": "Be brief.",
        "stream": True,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "text": {"format": {"type": "json_object"}},
    },
    "/v1/messages": {
        "model": "claude-next",
        "max_tokens": 3,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "hello"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "x"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no"}],
                    },
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
        "tools": [
            {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}},
            {"type": "web_search_20260318", "name": "web_search"},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "stop_sequences": ["x"],
        "temperature": 0.5,
        "top_k": 5,
        "thinking": {"type": "adaptive"},
        "stream": True,
    },
    "/v1/messages/count_tokens": {
        "model": "auto",
        "system": "Be brief.",
        "messages": MESSAGES,
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
    },
    "/v1/embeddings": {"model": "auto", "input": "hello"},
    "/v1/route": {"model": "auto", "messages": MESSAGES, "fenhe": {"quality": "full"}},
    "/tokenize": {"model": "auto", "prompt": "hello", "return_token_strs": True},
    "/detokenize": {"model": "auto", "tokens": [1, 2, 3]},
    "/admin/students": {"folder": "nowhere", "name": "x", "tasks": ["math"]},
}
"""A body with many fields for each endpoint that takes one."""


def search(num_examples: int) -> settings:
    return settings(
        max_examples=num_examples if EXAMPLES is None else int(EXAMPLES),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@dataclass(slots=True, frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Wire:
    """One connection, kept open as long as the server lets it be, but not so long that it is closed for idleness."""

    def __init__(self, url: str) -> None:
        self._used_s = time.monotonic()
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        return self._ask("POST", path, body, {"content-type": "application/json", **(headers or {})})

    def check_usable(self) -> None:
        """The same connection takes the next request, unless the server said that it would not."""
        is_open = self._connection.sock is not None
        socket_before = self._connection.sock
        assert self._ask("GET", "/health", None, {}).status == 200
        assert not is_open or self._connection.sock is socket_before

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        if time.monotonic() - self._used_s > IDLE_S:
            self.close()
        self._connection.request(method, path, body, dict(headers))
        response = self._connection.getresponse()
        content = response.read()
        self._used_s = time.monotonic()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
