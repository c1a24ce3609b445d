"""Distillation as one object: prepare, train, evaluate, export. `fenhe distill` is this with a progress bar."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from models.building.build import build_student
from models.building.exits import read_exits, write_exits
from models.distill.config import AUTO, DistillConfig
from models.distill.cutting.layout import Layout, check_tasks, new_exit, plan_of, planned_exits
from models.distill.cutting.measured_cut import cut_modules, measure_layers
from models.distill.data.examples import Example, encode_rows
from models.distill.data.labels import Answerer, LabelSettings
from models.distill.data.plain import encode_plain, read_plain
from models.distill.data.preparation import Cleaned, Prepared, clean, prepare, refuse_unwritten
from models.distill.data.prompt_writing import Judge, write_prompts
from models.distill.data.rows import Row
from models.distill.loss.objective import Teacher
from models.distill.narrowing.narrowing import Narrowing, with_plain
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.distill.run.branches import train_branches
from models.distill.run.heldout import HeldOutFigure, score_held_out
from models.distill.run.identity import differences, exits_key, plain, run_key
from models.distill.run.progress import Progress
from models.distill.run.teachers import Teachers
from models.distill.run.trainer import Trainer
from models.distill.teacher.cache import CachedTeacher
from models.distill.teacher.torch_answerer import TorchAnswerer
from models.distill.width_settings import WidthSettings
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.graphs.precisions import DEFAULT_PRECISIONS
from models.sources.source import ModelSource, path_to
from models.student.manifest import Manifest

PLACES = ("teacher", "teachers", "data", "out", "work", "name", "device")
"""Settings that say where things are on one machine: the exits file does not record them."""

RUN = "run"
"""In the record of an exits file: the key of the run that trained it."""

OpenAnswerer = Callable[[ModelSource], AbstractContextManager[Answerer]]


class Report(Protocol):
    """Called with what is being done, how much of it is done, how much there is, and perhaps some detail."""

    def __call__(self, what: str, done: float, total: float, detail: str = "", /) -> None: ...


def _silent(what: str, done: float, total: float, detail: str = "", /) -> None:
    """Reports nothing."""


class Distiller:
    """From a teacher to a student with trained exits.

    `student` is a cut such as `knowledge:9,reasoning:15,adapter:6`, or `auto`; `task` keeps the training rows of one
    task beside general ones. Everything else is in `config`. `answerer` opens what writes the answers that the data
    lack; without one the teacher writes them in torch, slowly. `judge` names the task of a prompt that the teacher
    wrote itself; without one each is of the task it was begun for.
    """

    def __init__(
        self,
        teacher: str | Path | None = None,
        student: str | None = None,
        task: str | None = None,
        *,
        config: DistillConfig | None = None,
        answerer: OpenAnswerer | None = None,
        judge: Judge | None = None,
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
        self._judge = judge
        self._report = report
        self.teachers = Teachers(self.config, lambda done, total: report("reading with the teacher", done, total))
        self._cleaned: Cleaned | None = None
        self._prepared: Prepared | None = None
        self._layout: Layout | None = None
        self._reading: Teacher | None = None
        self.exits: list[ExitModel] = []
        self.progress = Progress()

    @property
    def work(self) -> WorkFolder:
        return self.config.work_folder

    @property
    def source(self) -> ModelSource:
        """The model that the student is cut from."""
        return self.teachers.source

    @property
    def trunk(self) -> Trunk:
        return self.teachers.trunk

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
        if self.config.widths is not None:
            return self._train_widths(self.config.widths, resume)
        prepared, layout, own = self.prepared(), self.layout(), self.reading()
        check_tasks(self.config, {example.task for example in prepared.examples})
        exits, further = self._new_exits(layout, own.cache), self.teachers.further(prepared.examples)
        run = self._run_key()
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

    def _train_widths(self, settings: WidthSettings, resume: bool) -> Progress:
        """A leg over the teacher's answers and plain text, the same examples in the same order wherever it runs."""
        examples: dict[Example, None] = {}
        held_out: list[Row] = []
        for sample in settings.samples:
            labels = replace(self.config.labels, temperature=sample.temperature, seed=sample.seed)
            prepared = self._prepare(labels)
            examples |= dict.fromkeys(prepared.examples)
            held_out = held_out or prepared.held_out
        plain = encode_plain(read_plain(map(Path, settings.plain)), self.source.tokenizer())
        narrowing = Narrowing(
            source=self.source,
            trunk=self.trunk,
            examples=with_plain(list(examples), plain, settings.plain_share, self.config.seed),
            held_out=encode_rows(held_out, self.source.tokenizer(), self.config.text.max_tokens)[0],
            settings=settings,
            work=self.work,
            report=self._report,
        )
        done = narrowing.run(resume=resume)
        self.progress = Progress(step=done.step, num_tokens=done.num_tokens)
        return self.progress

    def reading(self) -> Teacher:
        """What the student's own teacher says about all examples, read from disk or computed now."""
        if self._reading is None:
            self._reading = self.teachers.own(self.prepared().examples, sorted(self.layout().state_layers))
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
        narrow = self.config.widths is not None
        return build_student(
            path_to(self.source),
            Path(out or self.config.out),
            name=self.config.name,
            modules=self.config.modules if narrow and self.config.modules != AUTO else None,
            precisions=self.config.precisions or DEFAULT_PRECISIONS,
            exits=None if narrow else self.exits_file(),
            widths=self.widths_file() if narrow else None,
        )

    def widths_file(self) -> Path:
        """What `train` wrote, perhaps in an earlier process. Raises: ConfigError when it is not there."""
        if not self.work.widths.exists():
            raise ConfigError(f"{self.work.widths} is not there; call train() first")
        return self.work.widths

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
                f"{file} belongs to a run with other {different}; restore that, or remove {self.work.path} "
                "and train again"
            )
        return file

    def prepared(self) -> Prepared:
        """The examples; the teacher answers what has no answer."""
        if self._prepared is None:
            self._prepared = self._prepare(self.config.labels)
            if self.config.transfer == "sequence":
                refuse_unwritten(self._prepared.num_by_teacher)
        return self._prepared

    def _prepare(self, labels: LabelSettings) -> Prepared:
        self.work.path.mkdir(parents=True, exist_ok=True)
        writer = self.teachers.writer()
        with (self._open_answerer or _torch_answerer)(writer) as answerer:
            if self._cleaned is None:
                self._cleaned = self._clean(answerer)
            return prepare(
                self._cleaned,
                self.config.data_settings,
                labels,
                self.source.tokenizer(),
                answerer,
                self.work,
                teacher=writer.sha256(),
                teacher_tokenizer=writer.tokenizer(),
                seed=self.config.seed,
                progress=lambda done, total: self._report("answers by the teacher", done, total),
            )

    def _clean(self, answerer: Answerer) -> Cleaned:
        """The rows of the files, and those whose prompts the teacher writes."""
        cleaned = clean(self.config.data_settings, self.config.seed)
        if self.config.prompts is None:
            return cleaned
        writer = self.teachers.writer()
        written = write_prompts(
            cleaned.training,
            answerer,
            writer.tokenizer(),
            self.work.teacher_prompts,
            self.config.prompts,
            teacher=writer.sha256(),
            judge=self._judge,
            avoided=[*cleaned.avoided, *(row.prompt for row in cleaned.held_out)],
            progress=lambda done, total: self._report("prompts by the teacher", done, total),
        )
        return cleaned.with_prompts(written.rows)

    def layout(self) -> Layout:
        """The cut that is configured, or found by looking at the teacher's layers on some of the training text."""
        if self._layout is None:
            analysis = measure_layers(self.prepared().examples, self.source.sha256(), lambda: self.trunk, self.work)
            modules = cut_modules(self.config.modules, analysis, self.work)
            self._layout = Layout(modules=modules, exits=planned_exits(self.config, modules))
        return self._layout

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
        teachers = [source.sha256() for source in (self.source, *self.teachers.further_sources.values())]
        return run_key(self.config, self.prepared().examples, layout.modules, layout.exits, teachers)

    def _refuse_other_checkpoints(self, resume: bool) -> None:
        folder = self.work.checkpoints
        if not resume and folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds checkpoints of an earlier run; continue it with --resume, or remove the folder"
            )

    def _change(
        self, data: str | Path | Sequence[str | Path] | None, epochs: float | None, batch_tokens: int | None
    ) -> None:
        if data is not None:
            files = (data,) if isinstance(data, (str, Path)) else tuple(data)
            if tuple(map(str, files)) != self.config.data_settings.files:
                self._cleaned = self._prepared = self._layout = self._reading = None
            self.config = replace(self.config, data=tuple(map(str, files)))
        training = self.config.training
        training = replace(
            training,
            epochs=training.epochs if epochs is None else epochs,
            batch_tokens=training.batch_tokens if batch_tokens is None else batch_tokens,
        )
        self.config = replace(self.config, training=training)


def _torch_answerer(source: ModelSource) -> AbstractContextManager[Answerer]:
    return nullcontext(TorchAnswerer(source))
