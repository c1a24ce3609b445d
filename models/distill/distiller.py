"""Distillation as one object: prepare, train, evaluate, export. `fenhe distill` is this with a progress bar."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from models.building.build import build_student
from models.building.exits import read_exits, write_exits
from models.distill.config import AUTO, DistillConfig
from models.distill.cutting.boundaries import LayerAnalysis, analyse, choose_boundaries
from models.distill.cutting.boundary_picture import boundary_svg
from models.distill.cutting.layout import Layout, check_tasks, new_exit, plan_of, planned_exits
from models.distill.data.examples import Example
from models.distill.data.labels import Answerer
from models.distill.data.preparation import Prepared, prepare
from models.distill.loss.objective import Teacher
from models.distill.network.decoder import Trunk, padded
from models.distill.network.exit_model import ExitModel
from models.distill.run.branches import train_branches
from models.distill.run.heldout import HeldOutFigure, score_held_out
from models.distill.run.identity import differences, exits_key, plain, run_key
from models.distill.run.progress import Progress
from models.distill.run.trainer import Trainer
from models.distill.teacher.cache import CachedTeacher, cached_teacher, plan_cache
from models.distill.teacher.open_teacher import open_teacher
from models.distill.teacher.torch_answerer import TorchAnswerer
from models.distill.teacher.vocabulary import compare_vocabularies
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.graphs.precisions import DEFAULT_PRECISIONS
from models.sources.source import ModelSource
from models.student.cut import parse_modules
from models.student.manifest import Manifest

logger = logging.getLogger(__name__)

ANALYSIS_EXAMPLES = 64
ANALYSIS_TOKENS = 160
PLACES = ("teacher", "teachers", "data", "out", "work", "name", "device")
"""Settings that say where things lie on somebody's machine: no matter of the weights' record."""

RUN = "run"
"""The key of an exits file's record that says which run it is of."""

OpenAnswerer = Callable[[ModelSource], AbstractContextManager[Answerer]]


class Report(Protocol):
    """Hears what is being done, how much of it is done and of how much, and perhaps how it goes."""

    def __call__(self, what: str, done: float, total: float, detail: str = "", /) -> None: ...


def _silent(what: str, done: float, total: float, detail: str = "", /) -> None:
    """Reports nothing."""


class Distiller:
    """From a teacher to a student with trained exits.

    `student` is a cut such as `knowledge:9,reasoning:15,adapter:6`, or `auto`; `task` keeps the training rows of one
    task beside general ones. Everything else is in `config`. `answerer` opens what writes the answers that the data
    lack; without one the teacher writes them in torch, slowly.
    """

    def __init__(
        self,
        teacher: str | Path | None = None,
        student: str | None = None,
        task: str | None = None,
        *,
        config: DistillConfig | None = None,
        answerer: OpenAnswerer | None = None,
        report: Report = _silent,
    ) -> None:
        """Raises: ConfigError for a teacher that cannot be read or settings that contradict each other."""
        if config is None and teacher is None:
            raise ConfigError("give the Distiller a teacher: a GGUF file, a Hugging Face folder or a name to pull")
        config = config or DistillConfig(teacher=str(teacher), data=(), out="student")
        self.config = replace(
            config,
            teacher=config.teacher if teacher is None else str(teacher),
            modules=config.modules if student is None else student,
            task=config.task if task is None else task,
        )
        self._open_answerer = answerer
        self._report = report
        self.source = open_teacher(self.config.teacher)
        self._prepared: Prepared | None = None
        self._layout: Layout | None = None
        self._trunk: Trunk | None = None
        self._reading: Teacher | None = None
        self._further_sources: dict[str, ModelSource] | None = None
        self.exits: list[ExitModel] = []
        self.progress = Progress()

    @property
    def work(self) -> WorkFolder:
        return self.config.work_folder

    @property
    def trunk(self) -> Trunk:
        if self._trunk is None:
            device = choose_device(self.config.device)
            self._trunk = Trunk(self.source, torch.bfloat16 if can_bf16(device) else torch.float32, device)
        return self._trunk

    def train(
        self,
        data: str | Path | Sequence[str | Path] | None = None,
        *,
        epochs: float | None = None,
        batch_tokens: int | None = None,
        resume: bool = False,
        keep: bool = True,
    ) -> Progress:
        """Prepare what is not there yet, and train all exits. `keep` False writes no checkpoints and no exits file.

        Raises: ConfigError, WeightsError; StepFailed when training has to stop, which names the checkpoint.
        """
        self._change(data, epochs, batch_tokens)
        if problems := self.config.problems():
            raise ConfigError("; ".join(problems))
        if keep:
            self._refuse_other_checkpoints(resume)
        prepared, layout, own = self.prepared(), self.layout(), self.reading()
        check_tasks(self.config, {example.task for example in prepared.examples})
        exits, further, run = self._new_exits(layout, own.cache), self._further(prepared.examples), self._run_key()
        trainer = Trainer(
            self.config,
            exits,
            prepared.examples,
            own,
            run=run,
            further=further,
            keep=keep,
            report=self._report_step,
        )
        self.progress = trainer.train(resume=resume)
        if self.config.branches is not None:
            train_branches(
                self.config,
                self.config.branches,
                exits,
                prepared.examples,
                own,
                further=further,
                run=run,
                resume=resume,
                keep=keep,
                report=self._report_step,
            )
        self.exits = exits
        if keep:
            self._write_exits(layout)
        return self.progress

    def reading(self) -> Teacher:
        """The teacher's word on all examples, read from disk or computed now."""
        if self._reading is None:
            cache = self._cache(self.source, self.trunk, self.prepared().examples, self.layout())
            self._reading = Teacher(trunk=self.trunk, cache=cache)
        return self._reading

    def _report_step(self, progress: Progress, num_steps: int) -> None:
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in progress.losses.items())
        self._report("training", progress.step, num_steps, losses)

    def evaluate(self, max_rows: int = 200) -> list[HeldOutFigure]:
        """Every exit against the full depth on held-out rows, in torch; `fenhe eval` measures the built student.

        Raises: ConfigError before `train`.
        """
        if not self.exits:
            raise ConfigError("there are no trained exits yet; call train() first")
        if not self.prepared().held_out:
            raise ConfigError(
                "there are no held-out rows to measure on; set text.heldout_share above 0, or give more text"
            )
        return score_held_out(
            self.trunk,
            self.exits,
            self.prepared().held_out,
            self.source.tokenizer(),
            self.config.text.max_tokens,
            max_rows,
        )

    def export(self, out: str | Path | None = None) -> Manifest:
        """Build the student folder.

        Raises: ConfigError before `train`, for exits of another run, or when the folder is in the way.
        """
        file = self.exits_file()
        first = self.source.files[0]
        return build_student(
            first if first.suffix == ".gguf" else first.parent,
            Path(out or self.config.out),
            name=self.config.name,
            precisions=self.config.precisions or DEFAULT_PRECISIONS,
            exits=file,
        )

    def exits_file(self) -> Path:
        """What `train` wrote, perhaps in an earlier process.

        Raises: ConfigError when it is not there, or another run's.
        """
        file = self.work.exits
        if not file.exists():
            raise ConfigError(f"{file} is not there; call train() first")
        recorded = str(read_exits(file).plan.training.get(RUN))
        if different := differences(recorded, exits_key(self._run_key(), self.config.branches)):
            raise ConfigError(
                f"{file} belongs to a run with other {different}; give that back, or remove {self.work.path} "
                "and train again"
            )
        return file

    def prepared(self) -> Prepared:
        """The examples; the teacher answers what has no answer."""
        if self._prepared is None:
            self.work.path.mkdir(parents=True, exist_ok=True)
            writer = self._writer()
            with (self._open_answerer or _torch_answerer)(writer) as answerer:
                self._prepared = prepare(
                    self.config.data_settings,
                    self.config.labels,
                    self.source.tokenizer(),
                    answerer,
                    self.work,
                    teacher=writer.sha256(),
                    teacher_tokenizer=writer.tokenizer(),
                    seed=self.config.seed,
                    progress=lambda done, total: self._report("answers by the teacher", done, total),
                )
            if self.config.transfer == "sequence":
                refuse_unwritten(self._prepared.num_by_teacher)
        return self._prepared

    def _writer(self) -> ModelSource:
        """Who answers what has no answer: in sequence-level distillation the first further teacher."""
        if self.config.transfer == "sequence":
            return open_teacher(self.config.teachers[0])
        return self.source

    def layout(self) -> Layout:
        """The cut that is configured, or found by looking at the teacher's layers on some of the training text."""
        if self._layout is None:
            analysis = self._analysed()
            if self.config.modules == AUTO:
                modules = choose_boundaries(analysis)
            else:
                modules = parse_modules(self.config.modules, self.source.architecture.num_layers)
            self.work.boundary_picture.write_text(boundary_svg(analysis, modules), encoding="utf-8")
            logger.info("cut modules=%s", ",".join(f"{module.name}:{module.num_layers}" for module in modules))
            self._layout = Layout(modules=modules, exits=planned_exits(self.config, modules))
        return self._layout

    def _analysed(self) -> LayerAnalysis:
        """Block influence, angular distance and attention of every layer, on examples drawn by their content."""
        drawn = sorted(self.prepared().examples, key=lambda example: hashlib.sha256(repr(example).encode()).digest())
        chosen = [example.token_ids[:ANALYSIS_TOKENS] for example in drawn[:ANALYSIS_EXAMPLES]]
        key = hashlib.sha256(repr((self.source.sha256(), chosen)).encode()).hexdigest()[:16]
        file = self.work.layer_analysis(key)
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=LayerAnalysis)
        analysis = analyse(self.trunk, [padded([token_ids]) for token_ids in chosen])
        file.write_bytes(msgspec.json.encode(analysis))
        return analysis

    def _cache(
        self, source: ModelSource, trunk: Trunk, examples: Sequence[Example], layout: Layout | None
    ) -> CachedTeacher:
        layers: set[int] = set()
        if layout is not None:
            layers = {layout.depth(exit) for exit in layout.exits}
            layers |= {exit.copied_from[0] for exit in layout.exits if exit.copied_from}
        plan = plan_cache(trunk, source.sha256(), examples, sorted(layers), self.config.training.teacher_top_k)
        done = 0

        def count(num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            self._report("reading with the teacher", done, plan.num_tokens)

        return cached_teacher(self.work.teacher_caches, plan, trunk, examples, report=count)

    def _further(self, examples: Sequence[Example]) -> dict[str, Teacher]:
        """The further teachers, their vocabularies compared with the student's."""
        found: dict[str, Teacher] = {}
        for name, source in self.further_sources().items():
            compare_vocabularies(source, self.source)
            trunk = Trunk(source, self.trunk.dtype, self.trunk.device)
            found[name] = Teacher(trunk=trunk, cache=self._cache(source, trunk, examples, None))
        return found

    def further_sources(self) -> Mapping[str, ModelSource]:
        """The teachers whose soft targets count beside the own one's, by their place in the config."""
        if self._further_sources is None:
            names = () if self.config.transfer == "sequence" else self.config.teachers
            self._further_sources = {f"teachers[{place}]": open_teacher(name) for place, name in enumerate(names)}
        return self._further_sources

    def _new_exits(self, layout: Layout, cache: CachedTeacher) -> list[ExitModel]:
        torch.manual_seed(self.config.seed)
        return [new_exit(self.trunk, layout, exit, cache) for exit in layout.exits]

    def _write_exits(self, layout: Layout) -> None:
        tensors = {
            f"{exit.name}.{name}": value.float().cpu().numpy()
            for exit in self.exits
            for name, value in exit.tensors().items()
        }
        settings = {name: value for name, value in plain(self.config).items() if name not in PLACES}
        training = {"config": settings, "steps": self.progress.step, "tokens": self.progress.num_tokens}
        training[RUN] = exits_key(self._run_key(), self.config.branches)
        training["sources"] = [list(pair) for pair in self.prepared().report.sources]
        write_exits(self.work.exits, plan_of(self.source, layout, training), tensors)

    def _run_key(self) -> str:
        layout = self.layout()
        teachers = [source.sha256() for source in (self.source, *self.further_sources().values())]
        return run_key(self.config, self.prepared().examples, layout.modules, layout.exits, teachers)

    def _refuse_other_checkpoints(self, resume: bool) -> None:
        folder = self.work.checkpoints
        if not resume and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds checkpoints of an earlier run; go on with --resume, or remove it")

    def _change(
        self, data: str | Path | Sequence[str | Path] | None, epochs: float | None, batch_tokens: int | None
    ) -> None:
        if data is not None:
            files = (data,) if isinstance(data, (str, Path)) else tuple(data)
            if tuple(map(str, files)) != self.config.data_settings.files:
                self._prepared = self._layout = self._reading = None
            self.config = replace(self.config, data=tuple(map(str, files)))
        training = self.config.training
        training = replace(
            training,
            epochs=training.epochs if epochs is None else epochs,
            batch_tokens=training.batch_tokens if batch_tokens is None else batch_tokens,
        )
        self.config = replace(self.config, training=training)


def refuse_unwritten(num_by_teacher: int) -> None:
    """Raises: ConfigError for sequence-level distillation over text that no teacher wrote."""
    if not num_by_teacher:
        raise ConfigError(
            'transfer = "sequence" trains on what teachers[0] writes, and every training row has an answer already; '
            "give rows without answers, or set labels.share_of_answered"
        )


def choose_device(name: str) -> torch.device:
    """Raises: ConfigError for a device that is not there."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {name!r} cannot be used here: {error}") from error
    return torch.device(name)


def can_bf16(device: torch.device) -> bool:
    """Whether bf16 is fast there: on CPUs that have no instructions for it, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


class _Torch(AbstractContextManager[Answerer]):
    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def __enter__(self) -> Answerer:
        return TorchAnswerer(self._source)

    def __exit__(self, *_: object) -> None:
        return None


def _torch_answerer(source: ModelSource) -> AbstractContextManager[Answerer]:
    return _Torch(source)
