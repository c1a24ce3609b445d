"""Settings of a remote student: its upstreams, their models, and how long each may take."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from models.bounds import Positive, Seconds, Share, out_of_bounds
from models.errors import Problem
from models.student.manifest import NAME_RULE, is_plain_name

Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
"""A base URL without user, query and fragment; without a path it is completed by `/v1`."""
ModelName = Annotated[str, Meta(min_length=1)]
Variable = Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]

ONLY_PATH = "full"
"""The path of a student that has one model."""


@dataclass(slots=True, kw_only=True, frozen=True)
class RemoteConfig:
    """`paths` is in order: the last one is the full path, which every request may take."""

    urls: Annotated[
        tuple[Url, ...],
        Meta(description="base URLs of its upstreams, such as http://10.0.0.7:8000/v1", extra={"unset": "none"}),
    ] = ()
    key_env: Annotated[
        tuple[Variable, ...],
        Meta(
            description="environment variables that hold the upstreams' keys: one for all, or one per URL",
            extra={"unset": "no key is sent"},
        ),
    ] = ()
    model: Annotated[
        ModelName | None,
        Meta(
            description="what the upstreams call the model of a student with one path",
            extra={"unset": "the student's name"},
        ),
    ] = None
    paths: Annotated[
        dict[str, ModelName],
        Meta(
            description="what the upstreams call the model of each path, the last one being the full path",
            extra={"unset": "one path, `full`"},
        ),
    ] = field(default_factory=dict)
    costs: Annotated[
        dict[str, Share],
        Meta(description="what a token costs on a path, as a share of the full path's cost", extra={"unset": "1"}),
    ] = field(default_factory=dict)
    keeps: Annotated[
        dict[str, Share],
        Meta(
            description="what a path keeps of the full path's quality on a task, by `path.task`",
            extra={"unset": "unknown: only a request that names it takes it"},
        ),
    ] = field(default_factory=dict)
    max_running: Annotated[Positive, Meta(description="requests that its upstreams work on at once")] = 256
    max_running_tokens: Annotated[
        Positive, Meta(description="their tokens, prompts estimated and answers as long as they may be")
    ] = 4_194_304
    max_context_tokens: Annotated[
        Positive, Meta(description="tokens of prompt and answer together, as /v1/models tells them")
    ] = 131_072
    max_tries: Annotated[
        Positive, Meta(description="upstreams that are tried for a request while nothing was sent to its client")
    ] = 3
    max_failures: Annotated[Positive, Meta(description="failures in a row after which an upstream is left alone")] = 3
    pause_s: Annotated[Seconds, Meta(description="seconds until one request tries such an upstream again")] = 5.0
    connect_timeout_s: Annotated[Seconds, Meta(description="seconds to connect to an upstream")] = 3.0
    first_token_timeout_s: Annotated[Seconds, Meta(description="seconds until a stream begins")] = 60.0
    token_timeout_s: Annotated[Seconds, Meta(description="seconds between two chunks of a stream")] = 30.0
    health_interval_s: Annotated[Seconds, Meta(description="seconds between two looks at an upstream")] = 5.0
    asks_usage: Annotated[
        bool, Meta(description="whether streams are asked for their usage (`stream_options.include_usage`)")
    ] = True

    def problems(self) -> list[Problem]:
        """Everything wrong with the values; empty when they are sound."""
        return [*out_of_bounds(self), *self._contradictions()]

    def _contradictions(self) -> Iterator[Problem]:
        if len(set(self.urls)) < len(self.urls):
            yield Problem(setting="urls", said="urls: one is listed twice")
        if len(self.key_env) not in (0, 1, len(self.urls)):
            said = f"key_env: {len(self.key_env)} variables for {len(self.urls)} URLs; give one, or one per URL"
            yield Problem(setting="key_env", said=said)
        if self.model is not None and self.paths:
            yield Problem(setting="model", others=("paths",), said="model and paths contradict each other; give one")
        yield from (
            Problem(setting="paths", said=f"paths: {name!r} is no name for a path: {NAME_RULE}")
            for name in self.paths
            if not is_plain_name(name)
        )
        yield from self._unknown_paths()
        if self.keeps and set(self.costs) != set(self.paths):
            missing = ", ".join(sorted(set(self.paths) - set(self.costs)))
            said = f"keeps: paths are chosen by their cost, and costs has none for {missing or 'these paths'}"
            yield Problem(setting="keeps", others=("costs",), said=said)

    def _unknown_paths(self) -> Iterator[Problem]:
        known = ", ".join(self.paths) or "none"
        for table, names in (("costs", list(self.costs)), ("keeps", [name.rpartition(".")[0] for name in self.keeps])):
            for name in names:
                if name not in self.paths:
                    said = f"{table}: there is no path {name!r}; paths has {known}"
                    yield Problem(setting=table, others=("paths",), said=said)

    def models(self, student: str) -> dict[str, str]:
        """The upstream's model of every path."""
        return dict(self.paths) or {ONLY_PATH: self.model or student}
