"""Settings of online quality: which answers are scored, at what cost, and what may follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from models.bounds import Positive, Seconds, Share, out_of_bounds
from models.errors import Problem
from router.tasks import TASKS, Task

Mode = Literal["off", "observe", "act"]
DEFAULT_FLOORS: Mapping[Task, float] = {"math": 0.75, "legal": 0.7, "fact": 0.75, "creative": 0.65, "general": 0.75}
"""0.09 to 0.13 below what the default student's paths keep that are taken by default; see docs/online-quality.md."""
PINNED_PATTERN = f"^({'|'.join(TASKS)})\\..+$"
PinnedPath = Annotated[str, Meta(pattern=PINNED_PATTERN)]
"""A task and a path: `legal.wide`."""


@dataclass(slots=True, kw_only=True, frozen=True)
class OnlineQualityConfig:
    """`floors` are for tasks at rest, `floors_under_load` what a path must keep to be taken while its student is busy,
    whatever its other figures say; without one nothing changes under load."""

    mode: Annotated[
        Mode,
        Meta(description="off; observe: answers are scored and shown; act: routing follows what is found, too"),
    ] = "observe"
    share: Annotated[Share, Meta(description="share of finished answers that are scored")] = 0.02
    engine_share: Annotated[
        Share, Meta(description="the most that scoring may take of the time an engine works, as a share")
    ] = 0.02
    max_queued: Annotated[Positive, Meta(description="answers that wait to be scored; more are left out")] = 16
    max_running: Annotated[
        int, Meta(ge=0, description="nothing is scored while more sequences than this run, or a request waits")
    ] = 4
    min_answer_tokens: Annotated[Positive, Meta(description="shorter answers are not scored")] = 8
    max_answer_tokens: Annotated[Positive, Meta(description="tokens of an answer that are scored, the first ones")] = (
        128
    )
    max_prompt_tokens: Annotated[Positive, Meta(description="answers to longer prompts are not scored")] = 1024
    half_life_s: Annotated[Seconds, Meta(description="seconds after which a score counts half")] = 21_600.0
    half_life_samples: Annotated[
        Positive, Meta(description="newer scores of the same path and task after which a score counts half")
    ] = 32
    min_samples: Annotated[
        Positive, Meta(description="scores, by their weight, without which nothing follows from a figure")
    ] = 30
    floors: Annotated[
        dict[Task, Share],
        Meta(
            description="per task, the share of the full path's quality that its paths must keep",
            extra={"unset": ", ".join(f"{task} {floor:g}" for task, floor in DEFAULT_FLOORS.items())},
        ),
    ] = field(default_factory=dict)
    floors_under_load: Annotated[
        dict[Task, Share],
        Meta(
            description="per task, the share that is enough while the student is busy, with mode act",
            extra={"unset": "none: load changes nothing here"},
        ),
    ] = field(default_factory=dict)
    rest_s: Annotated[
        Seconds,
        Meta(description="seconds that a path stays out at least; twice as many each time it is taken out again"),
    ] = 600.0
    pins: Annotated[
        dict[PinnedPath, Literal["in", "out"]],
        Meta(
            description="whether default routing of a task may take a path, whatever its figures say, by `task.path`",
            extra={"unset": "none"},
        ),
    ] = field(default_factory=dict)

    @property
    def all_floors(self) -> Mapping[Task, float]:
        return {**DEFAULT_FLOORS, **self.floors}

    @property
    def pinned(self) -> Mapping[tuple[Task, str], bool]:
        """Whether default routing takes a path, by task and path."""
        return {
            (task, place.removeprefix(f"{task}.")): where == "in"
            for place, where in self.pins.items()
            for task in TASKS
            if place.startswith(f"{task}.")
        }

    def problems(self) -> list[Problem]:
        """Everything wrong with the values; empty when they are sound."""
        found = out_of_bounds(self)
        if self.min_answer_tokens > self.max_answer_tokens:
            said = f"min_answer_tokens {self.min_answer_tokens} is more than max_answer_tokens {self.max_answer_tokens}"
            found.append(Problem(setting="min_answer_tokens", others=("max_answer_tokens",), said=said))
        # Of endless scores, each of which counts less than the next, so many count in all.
        most = int(2.8 * self.half_life_samples)
        if self.min_samples > most:
            said = f"min_samples {self.min_samples} is never reached with half_life_samples {self.half_life_samples}"
            found.append(
                Problem(setting="min_samples", others=("half_life_samples",), said=f"{said}: at most {most} count")
            )
        for task, floor in self.floors_under_load.items():
            if floor > self.all_floors[task]:
                said = f"floors_under_load.{task} {floor} is more than the floor at rest, {self.all_floors[task]}"
                found.append(Problem(setting=f"floors_under_load.{task}", others=(f"floors.{task}",), said=said))
        return found
