"""All settings of the server in one frozen tree; every field says beside it what it means and what it may be.

The description of a field is what `fenhe serve --help`, the table of all settings and the JSON Schema say of it, and
`unset` what its default is where the value itself does not show it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from engines.config import EngineConfig
from engines.remote.config import RemoteConfig
from models.bounds import Positive, Seconds, Share
from models.errors import Problem
from router.admission.admission import AdmissionConfig
from router.cache.config import CacheConfig
from router.policy import PolicyConfig
from router.quality.config import OnlineQualityConfig
from router.tasks import TASKS, Task

Sha256 = Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
StudentName = Annotated[str, Meta(min_length=1, max_length=128)]
Origin = Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)$")]
"""As browsers send it: without a path; or `*`."""
Host = Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s/:*@\[\]]+)$")]
"""A name or an address; of version 6 in brackets."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Limits:
    """The head is the request line and the headers."""

    max_body_bytes: Annotated[Positive, Meta(description="size of a request's body")] = 2 * 1024 * 1024
    max_prompt_tokens: Annotated[
        Positive | None, Meta(description="tokens of a prompt", extra={"unset": "the student's context"})
    ] = None
    max_completion_tokens: Annotated[
        Positive | None, Meta(description="tokens of an answer", extra={"unset": "the student's context"})
    ] = None
    max_prompts: Annotated[Positive, Meta(description="prompts of one request")] = 32
    max_requests: Annotated[Positive, Meta(description="open requests, all students together")] = 512
    max_json_depth: Annotated[Positive, Meta(description="how deeply a body may be nested")] = 64
    max_json_nodes: Annotated[Positive, Meta(description="arrays and objects of a body")] = 200_000
    max_head_bytes: Annotated[Positive, Meta(description="size of the request line and the headers")] = 64 * 1024
    max_headers: Annotated[Positive, Meta(description="headers of one request")] = 128
    max_url_bytes: Annotated[Positive, Meta(description="size of a URL")] = 8 * 1024
    max_connections: Annotated[Positive, Meta(description="open connections")] = 4096
    head_timeout_s: Annotated[Seconds, Meta(description="seconds for the whole head to arrive")] = 15.0
    body_timeout_s: Annotated[Seconds, Meta(description="seconds for the body to arrive")] = 30.0
    write_timeout_s: Annotated[Seconds, Meta(description="seconds a client may take to read more of its answer")] = 60.0
    request_timeout_s: Annotated[Seconds, Meta(description="seconds for a whole request")] = 600.0
    max_schema_bytes: Annotated[
        Positive, Meta(description="size of the schemas of response_format and tools together")
    ] = 64 * 1024
    grammar_timeout_s: Annotated[Seconds, Meta(description="seconds to compile a grammar from them")] = 5.0


EngineKind = Literal["onnx", "remote", "vllm"]


@dataclass(slots=True, kw_only=True, frozen=True)
class StudentConfig:
    """One student, as a [[student]] table has it."""

    folder: Annotated[
        Path | None,
        Meta(
            description="its folder, or a GGUF file or Hugging Face folder to build it from, in the cache",
            extra={"unset": "the default student"},
        ),
    ] = None
    name: Annotated[
        StudentName | None,
        Meta(description="what requests call it", extra={"unset": "its manifest's name, or that of its file"}),
    ] = None
    tasks: Annotated[tuple[Task, ...], Meta(description="tasks that it takes", extra={"unset": "all"})] = ()
    engine: Annotated[
        EngineKind,
        Meta(
            description="what computes its answers: onnx here; vllm, where it is installed; or remote: the upstreams "
            "of [student.remote]"
        ),
    ] = "onnx"
    remote: Annotated[RemoteConfig, Meta(description="the upstreams of a remote student")] = field(
        default_factory=RemoteConfig
    )

    vllm: Annotated[
        dict[str, bool | int | float | str],
        Meta(description="options of vLLM's, by its own names", extra={"unset": "none"}),
    ] = field(default_factory=dict)

    def problems(self) -> list[Problem]:
        """What contradicts itself; empty when nothing does."""
        return list(self._contradictions())

    def _contradictions(self) -> Iterator[Problem]:
        if self.engine != "vllm" and self.vllm:
            said = f'vllm: [student.vllm] has no effect with engine {self.engine!r}; write engine = "vllm"'
            yield Problem(setting="engine", others=("vllm",), said=said)
        if self.engine != "remote":
            if self.remote != RemoteConfig():
                said = f'remote: [student.remote] has no effect with engine {self.engine!r}; write engine = "remote"'
                yield Problem(setting="engine", others=("remote",), said=said)
            return
        if not self.remote.urls:
            said = 'remote.urls: a remote student needs them: urls = ["http://ADDRESS:PORT/v1"]'
            yield Problem(setting="remote.urls", said=said)
        if self.name is None:
            yield Problem(setting="name", said="name: a remote student needs one: it is what requests call it")
        if self.folder is not None:
            said = 'folder: a remote student has no folder; leave it out, or leave out engine = "remote"'
            yield Problem(setting="folder", others=("engine",), said=said)
        unknown = sorted({place.rpartition(".")[2] for place in self.remote.keeps} - set(TASKS))
        if unknown:
            said = f"remote.keeps: {', '.join(unknown)}: no such task; there are {', '.join(TASKS)}"
            yield Problem(setting="remote.keeps", said=said)


@dataclass(slots=True, kw_only=True, frozen=True)
class RouterConfig(PolicyConfig):
    """How requests are routed. Without classification, one that names neither path nor task takes the full path."""

    enabled: Annotated[
        bool,
        Meta(description="whether requests are classified; otherwise they take the full path"),
    ] = True
    classifier: Annotated[
        Path | None,
        Meta(description="a classifier file", extra={"unset": "the one that ships"}),
    ] = None


@dataclass(slots=True, kw_only=True, frozen=True)
class AdminConfig:
    """Who may use the admin endpoints."""

    key_sha256: Annotated[
        Sha256 | None,
        Meta(description="SHA-256 of the admin key, in hexadecimal", extra={"unset": "none, and no admin endpoints"}),
    ] = None


@dataclass(slots=True, kw_only=True, frozen=True)
class KeysConfig:
    """The keys of `file` and those whose SHA-256 is listed are all valid. Without any, everybody may use the server."""

    file: Annotated[
        Path | None,
        Meta(description="file with [[key]] tables; `fenhe keys make NAME` prints one", extra={"unset": "none"}),
    ] = None
    sha256: Annotated[
        tuple[Sha256, ...], Meta(description="SHA-256 of keys, in hexadecimal, with commas", extra={"unset": "none"})
    ] = ()
    requests_per_minute: Annotated[Positive, Meta(description="requests of one key in a minute")] = 6_000
    tokens_per_minute: Annotated[
        Positive,
        Meta(description="tokens of one key in a minute, prompts and answers"),
    ] = 10_000_000
    max_concurrent: Annotated[Positive, Meta(description="open requests of one key")] = 256
    metrics: Annotated[bool, Meta(description="whether /metrics needs a key too")] = False


@dataclass(slots=True, kw_only=True, frozen=True)
class CorsConfig:
    """Which pages may call this server from a browser."""

    origins: Annotated[
        tuple[Origin, ...],
        Meta(
            description="origins whose pages may call, with commas: https://page.example, or * for all",
            extra={"unset": "none"},
        ),
    ] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class ConsoleConfig:
    """The page at `/`."""

    enabled: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="whether the page is there: auto on a server that listens on this machine only or has API keys"
        ),
    ] = "auto"
    folders: Annotated[
        tuple[Path, ...],
        Meta(
            description="folders, with commas, whose student folders can be added from the page by name",
            extra={"unset": "where the default student is kept"},
        ),
    ] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class TracingConfig:
    """OpenTelemetry by OTLP over HTTP."""

    enabled: Annotated[bool, Meta(description="whether spans and metrics are sent")] = False
    endpoint: Annotated[
        str | None,
        Meta(
            description="base URL of the collector", extra={"unset": "what OTEL_EXPORTER_OTLP_* say, else this machine"}
        ),
    ] = None
    service_name: Annotated[str, Meta(min_length=1, description="name of the service")] = "fenhe"
    sample_ratio: Annotated[
        Share, Meta(description="share of requests without a traceparent that are traced, from 0 to 1")
    ] = 1.0
    timeout_s: Annotated[Seconds, Meta(description="seconds for one call to the collector")] = 5.0
    metric_interval_s: Annotated[Seconds, Meta(description="seconds between two calls with metrics")] = 30.0


@dataclass(slots=True, kw_only=True, frozen=True)
class ServerConfig:
    """The root of the tree. `student` has all students, in order."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any that is free")] = 8000
    student: Annotated[
        tuple[StudentConfig, ...],
        Meta(
            description="folder of the only student, or a GGUF file or Hugging Face folder to build it from; several "
            "are [[student]] tables of the file",
            extra={"unset": "the default student"},
        ),
    ] = (StudentConfig(),)
    grace_s: Annotated[
        float,
        Meta(ge=0.0, description="seconds that running requests may take after SIGTERM; the process ends 2 s later"),
    ] = 25.0
    keep_alive_s: Annotated[
        Positive, Meta(description="seconds that an idle connection stays open between requests")
    ] = 75
    allow_no_keys: Annotated[
        bool, Meta(description="whether a server without API keys may listen beyond this machine")
    ] = False
    allowed_hosts: Annotated[
        tuple[Host, ...],
        Meta(
            description="names, with commas, by which a server without API keys that listens on this machine only may "
            "be called, beside those of this machine",
            extra={"unset": "none"},
        ),
    ] = ()
    recommended_sampling: Annotated[
        bool,
        Meta(
            description="whether a request that gives no temperature, top_p, top_k, min_p or repetition_penalty has "
            "what its model's authors recommend"
        ),
    ] = True
    claude_model: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=256,
            description="the model that ids of Anthropic's (`claude-...`) stand for in /v1/messages: a student, one of "
            "its paths (`student:path`), or `auto`",
        ),
    ] = "auto"
    special_tokens_in_messages: Annotated[
        bool,
        Meta(
            description="whether what spells a special token (such as </s>) in messages and tools is one, so that a "
            "user's text can end a turn; otherwise it is text"
        ),
    ] = False
    verify_students: Annotated[
        bool,
        Meta(
            description="whether a student's files are compared with their SHA-256 before they are loaded; what has "
            "not changed since is not read again"
        ),
    ] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least serious lines that are logged")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="text, or one JSON object a line")] = "text"
    access_log: Annotated[
        bool,
        Meta(description="whether the web server logs requests too, in a line of its own"),
    ] = False
    limits: Annotated[Limits, Meta(description="bounds on what one client may ask for")] = field(default_factory=Limits)
    engine: Annotated[
        EngineConfig,
        Meta(description="what one student's engine may hold, and how it schedules"),
    ] = field(default_factory=EngineConfig)
    router: Annotated[
        RouterConfig,
        Meta(description="which path a request takes; its tables, such as [router.min_retention], have no option"),
    ] = field(default_factory=RouterConfig)
    online_quality: Annotated[
        OnlineQualityConfig,
        Meta(
            description="what paths keep on live traffic; its tables, such as [online_quality.floors], have no option"
        ),
    ] = field(default_factory=OnlineQualityConfig)
    admin: Annotated[AdminConfig, Meta(description="the admin endpoints")] = field(default_factory=AdminConfig)
    admission: Annotated[AdmissionConfig, Meta(description="how much may run and wait, per student")] = field(
        default_factory=AdmissionConfig
    )
    cache: Annotated[CacheConfig, Meta(description="kept answers; the table [cache.semantic] has no option")] = field(
        default_factory=CacheConfig
    )
    keys: Annotated[
        KeysConfig,
        Meta(description="API keys, and the limits of those that name none of their own"),
    ] = field(default_factory=KeysConfig)
    cors: Annotated[CorsConfig, Meta(description="pages of other origins that may call this server")] = field(
        default_factory=CorsConfig
    )
    console: Annotated[ConsoleConfig, Meta(description="the page at `/` of the server")] = field(
        default_factory=ConsoleConfig
    )
    tracing: Annotated[TracingConfig, Meta(description="OpenTelemetry, needs fenhe[otel]")] = field(
        default_factory=TracingConfig
    )


Draft = Callable[[], tuple[ServerConfig, list[Problem]]]
"""Reads the settings. Wrong ones have their defaults, and a problem each."""
