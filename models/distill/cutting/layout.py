"""Where a teacher is cut and which exits are trained behind the cuts, from the config to the exits file's plan."""

from dataclasses import dataclass, replace
from typing import Any

from models.building.exits import ExitPlan, PlannedExit, PlannedModule
from models.distill.config import DistillConfig, ExitConfig
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.distill.teacher.cache import CachedTeacher
from models.errors import ConfigError
from models.sources.source import ModelSource
from models.student.cut import TASKS
from models.student.manifest import Module, StudentPath

FIT_TOKENS = 200_000


@dataclass(slots=True, kw_only=True, frozen=True)
class Layout:
    """Where the teacher is cut, and the exits to train."""

    modules: tuple[Module, ...]
    exits: tuple[ExitConfig, ...]

    def depth(self, exit: ExitConfig) -> int:
        """Layers the trunk runs before this exit."""
        module = next(module for module in self.modules if module.name == exit.after)
        return module.first_layer + module.num_layers

    @property
    def state_layers(self) -> set[int]:
        """The numbers of layers after which training reads the trunk's states: before every exit, and before the layer
        that the exit's first block was copied from."""
        depths = {self.depth(exit) for exit in self.exits}
        return depths | {exit.copied_from[0] for exit in self.exits if exit.copied_from}


def check_tasks(config: DistillConfig, present: set[str]) -> None:
    """Raises: ConfigError for a task that some setting names and no example has."""
    named = {task for exit in config.exits for task in exit.tasks} | {name for name in (config.task,) if name}
    if missing := sorted(named - present):
        raise ConfigError(f"no training text of task {', '.join(missing)}; there is {', '.join(sorted(present))}")


def new_exit(trunk: Trunk, layout: Layout, config: ExitConfig, cache: CachedTeacher) -> ExitModel:
    """An exit whose map is fitted to the cached states."""
    assert config.copied_from is not None
    exit = ExitModel(
        trunk,
        name=config.exit_name,
        depth=layout.depth(config),
        copied_from=config.copied_from,
        has_map=config.has_map,
        tasks=config.tasks,
        losses=config.losses,
    )
    if config.has_map:
        every = max(1, len(cache.entropy) // FIT_TOKENS)
        exit.fit_map(cache.states[exit.depth][::every], cache.states[exit.target_layer][::every])
    return exit


def planned_exits(config: DistillConfig, modules: tuple[Module, ...]) -> tuple[ExitConfig, ...]:
    """The configured exits, or one behind every module but the last, each with its layers filled in.

    Raises: ConfigError for an exit behind no module, or behind the last one, which has the model's own end.
    """
    last_layer = sum(module.num_layers for module in modules) - 1
    names = [module.name for module in modules]
    exits = config.exits or tuple(ExitConfig(after=name) for name in names[:-1])
    for exit in exits:
        if exit.after not in names[:-1]:
            raise ConfigError(
                f"exit {exit.exit_name!r} is after {exit.after!r}; "
                f"exits go behind {', '.join(names[:-1]) or 'no module: there is only one'}"
            )
        if wrong := [layer for layer in exit.copied_from or () if not 0 <= layer <= last_layer]:
            raise ConfigError(f"exit {exit.exit_name!r} copies layer {wrong[0]}; the teacher has 0 to {last_layer}")
    return tuple(exit if exit.copied_from is not None else replace(exit, copied_from=(last_layer,)) for exit in exits)


def plan_of(source: ModelSource, layout: Layout, training: dict[str, Any]) -> ExitPlan:
    """The plan that the exits file holds.

    A task goes to the shallowest path that was trained on it; whether that keeps enough is measured, and the router's
    policy goes deeper where it does not.
    """
    names = [module.name for module in layout.modules]
    paths = tuple(
        StudentPath(name=e.path_name, modules=tuple(names[: names.index(e.after) + 1]), exit=e.exit_name)
        for e in layout.exits
    )
    shallowest_first = sorted(layout.exits, key=layout.depth)
    tasks = {
        task: exit.path_name
        for task in TASKS
        for exit in reversed(shallowest_first)
        if task in exit.tasks or not exit.tasks
    }
    return ExitPlan(
        source_sha256=source.sha256(),
        modules=tuple(PlannedModule(name=m.name, num_layers=m.num_layers) for m in layout.modules),
        exits=tuple(
            PlannedExit(
                name=e.exit_name,
                after=e.after,
                num_blocks=len(e.copied_from or ()),
                has_map=e.has_map,
                copied_from=e.copied_from or (),
                tasks=e.tasks,
            )
            for e in layout.exits
        ),
        paths=paths,
        tasks=tasks,
        training=training,
    )
