"""The clients of the suite: what each is, where it is installed, and what it can do."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
ENVIRONMENTS = ROOT / ".venv-clients"

CAPABILITIES = {
    "chat": "two turns, the second with the first one's answer as the client keeps it",
    "stream": "the same answer in pieces",
    "tools": "a call, its result sent back, and the answer to it, whole and as a stream",
    "structured": "a value of a schema that has bounds",
    "errors": "an unknown model, a wrong key, a prompt too long, an overloaded server, a stream that breaks off",
    "cancel": "a stream left by the client's own means while its process lives on: the server stops too",
    "scores": "log-probabilities, of answers and of prompts",
    "load": "a benchmark that counts every request as answered, with its tokens",
}
BASIC = ("chat", "stream", "tools", "structured", "errors", "cancel")


@dataclass(slots=True, kw_only=True, frozen=True)
class Client:
    """`program` is a file of `programs/`, run in `environment`: a folder of Python packages, or `node`. `is_optional`:
    what is large and left out where it is not installed. `needs_script`: it says so much of itself, or depends so
    much on sensible answers, that only the scripted student will do. `note` is what its users should know.
    """

    name: str
    endpoint: str
    program: str
    environment: str = "sdk"
    capabilities: Sequence[str] = BASIC
    is_optional: bool = False
    needs_script: bool = False
    note: str = ""

    @property
    def is_installed(self) -> bool:
        folder = FOLDER / "node_modules" if self.environment == "node" else ENVIRONMENTS / self.environment
        return folder.is_dir()

    def command(self) -> list[str]:
        if self.environment == "node":
            return [str(ENVIRONMENTS / "sdk" / "bin" / "node"), str(FOLDER / "programs" / f"{self.program}.mjs")]
        return [str(ENVIRONMENTS / self.environment / "bin" / "python"), "-m", f"tests.clients.programs.{self.program}"]


def node(name: str, endpoint: str, program: str, capabilities: Sequence[str] = BASIC, *, note: str = "") -> Client:
    return Client(
        name=name, endpoint=endpoint, program=program, environment="node", capabilities=capabilities, note=note
    )


def large(name: str, endpoint: str, program: str, capabilities: Sequence[str], *, note: str = "") -> Client:
    return Client(
        name=name,
        endpoint=endpoint,
        program=program,
        environment="load",
        capabilities=capabilities,
        is_optional=True,
        note=note,
    )


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"

CLIENTS = (
    Client(name="openai (Python)", endpoint=CHAT, program="openai_chat", capabilities=(*BASIC, "scores")),
    Client(name="openai (Python)", endpoint=RESPONSES, program="openai_responses"),
    Client(name="anthropic (Python)", endpoint=MESSAGES, program="anthropic_messages"),
    Client(name="LangChain (Python)", endpoint=CHAT, program="langchain_chat"),
    Client(name="LiteLLM SDK", endpoint=CHAT, program="litellm_chat"),
    Client(name="pydantic-ai", endpoint=CHAT, program="pydantic_ai_chat"),
    Client(
        name="instructor",
        endpoint=CHAT,
        program="instructor_chat",
        note="its modes for tools and for JSON schemas",
        environment="instructor",
        capabilities=("structured", "errors"),
    ),
    Client(name="Agents SDK (Python)", endpoint=RESPONSES, program="agents_responses"),
    Client(name="Agents SDK (Python)", endpoint=CHAT, program="agents_chat"),
    Client(name="llm", endpoint=CHAT, program="llm_chat"),
    node("openai (JavaScript)", CHAT, "openai_js_chat", (*BASIC, "scores")),
    node("openai (JavaScript)", RESPONSES, "openai_js_responses"),
    node("anthropic (JavaScript)", MESSAGES, "anthropic_js_messages"),
    node("AI SDK, OpenAI-compatible", CHAT, "ai_sdk_compatible"),
    node(
        "AI SDK, OpenAI",
        RESPONSES,
        "ai_sdk_openai",
        note="set `providerOptions: {openai: {store: false}}`; without it an earlier answer is sent back as "
        "the name of something stored, and fenhe stores nothing",
    ),
    node("LangChain (JavaScript)", CHAT, "langchain_js_chat"),
    node("Agents SDK (JavaScript)", RESPONSES, "agents_js_responses"),
    node("Agents SDK (JavaScript)", CHAT, "agents_js_chat"),
    Client(
        name="Codex CLI",
        endpoint=RESPONSES,
        program="codex_responses",
        note="its own instructions and tools are about 9,000 tokens, so a student needs a context of 16,384 or more",
        capabilities=("chat", "tools", "structured", "errors", "cancel"),
        needs_script=True,
    ),
    large("lm-eval", f"{CHAT}, /v1/completions", "lm_eval_tasks", ("chat", "scores")),
    large("guidellm", CHAT, "guidellm_run", ("errors", "load")),
    large("aiperf", CHAT, "aiperf_profile", ("errors", "load")),
    large(
        "vllm bench",
        f"{CHAT}, /v1/completions",
        "vllm_requests",
        ("errors", "load"),
        note="its request functions alone, out of its wheel; the command needs the whole package",
    ),
)
KNOWN_FAILURES: dict[tuple[str, str], str] = {}
"""Cells, by program and capability, that fail by the client's own fault: why, with the client's issue and the other
server that it fails against in the same way. A cell that works after all fails the suite until it is taken out."""


def pinned_versions() -> set[tuple[str, str]]:
    """Name and exact version of every package that the suite's own files of requirements name. One name may have
    several, in different environments.
    """
    files = sorted((FOLDER / "requirements").rglob("*.txt"))
    text = "\n".join(file.read_text() for file in files)
    packages: dict[str, str] = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    return {*re.findall(r"^([\w.-]+)(?:\[[\w,-]*\])?==(\S+)$", text, re.MULTILINE), *packages.items()}
