"""The teachers of a run: the student's own, further ones, and what they say about the training text."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from models.distill.config import DistillConfig
from models.distill.data.examples import Example
from models.distill.loss.objective import Teacher
from models.distill.network.decoder import Trunk
from models.distill.run.device import choose_device, choose_float_type
from models.distill.teacher.cache import CachedTeacher, cached_teacher, plan_cache
from models.distill.teacher.open_teacher import open_teacher
from models.distill.teacher.vocabulary import compare_vocabularies
from models.sources.source import ModelSource

ReportTokens = Callable[[int, int], None]
"""Called with how many tokens a teacher has read and how many it is to read."""


class Teachers:
    """`source` is the model that the student is cut from. Everything else is opened when it is first asked for."""

    def __init__(self, config: DistillConfig, report: ReportTokens) -> None:
        """Raises: ConfigError, WeightsError for a teacher that cannot be read."""
        self._config = config
        self._report = report
        self.source = open_teacher(config.teacher)

    @cached_property
    def trunk(self) -> Trunk:
        device = choose_device(self._config.device)
        return Trunk(self.source, choose_float_type(device), device)

    @cached_property
    def further_sources(self) -> Mapping[str, ModelSource]:
        """The teachers whose soft targets count beside the student's own, by their place in the config."""
        names = () if self._config.transfer == "sequence" else self._config.teachers
        return {f"teachers[{place}]": open_teacher(name) for place, name in enumerate(names)}

    def writer(self) -> ModelSource:
        """The teacher that writes missing answers: the own, or the first further one in sequence-level distillation."""
        if self._config.transfer == "sequence":
            return open_teacher(self._config.teachers[0])
        return self.source

    def own(self, examples: Sequence[Example], layers: Sequence[int]) -> Teacher:
        """The student's own teacher, with its states after each number of `layers`; read from disk or computed now."""
        return Teacher(trunk=self.trunk, cache=self._cache(self.source, self.trunk, examples, layers))

    def further(self, examples: Sequence[Example]) -> dict[str, Teacher]:
        """The further teachers by name. Raises: ConfigError for one with another vocabulary than the student's."""
        found: dict[str, Teacher] = {}
        for name, source in self.further_sources.items():
            compare_vocabularies(source, self.source)
            trunk = Trunk(source, self.trunk.dtype, self.trunk.device)
            found[name] = Teacher(trunk=trunk, cache=self._cache(source, trunk, examples, ()))
        return found

    def _cache(
        self, source: ModelSource, trunk: Trunk, examples: Sequence[Example], layers: Sequence[int]
    ) -> CachedTeacher:
        plan = plan_cache(trunk, source.sha256(), examples, layers, self._config.training.teacher_top_k)
        done = 0

        def count(num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            self._report(done, plan.num_tokens)

        return cached_teacher(self._config.work_folder.teacher_caches, plan, trunk, examples, report=count)
