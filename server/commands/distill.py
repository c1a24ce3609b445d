"""`fenhe distill`: a teacher and a short config become a student folder that `fenhe serve` serves."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from models.errors import ConfigError
from models.student.manifest import MANIFEST_NAME, Manifest, read_manifest
from server.commands.eval import progress_s

if TYPE_CHECKING:
    from models.distill.config import DistillConfig
    from models.distill.data.labels import Answerer
    from models.distill.data.prompt_writing import Judge
    from models.distill.distiller import Distiller
    from models.sources.source import ModelSource

ANSWERING_CONTEXT_TOKENS = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="three lines do: teacher, data, out")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, its time and its memory; do nothing")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--boundaries", metavar="auto|NAME:LAYERS,...", help="where to cut (default: the config's)")
    parser.add_argument("--out", metavar="DIR", help="the student folder to write (default: the config's)")
    parser.add_argument("--ablation", type=Path, metavar="FILE.toml", help="run variations, print what each is worth")
    parser.add_argument("--no-eval", action="store_true", help="do not measure the student afterwards")
    parser.add_argument(
        "--pick",
        choices=("interactive", "offline", "edge"),
        help="name the path and precision for this use; a student that was measured before is not made again",
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        from models.distill.config import read_config
        from models.distill.distiller import Distiller
    except ImportError as error:
        raise ConfigError(
            f"`fenhe distill` needs {error.name}; install it with `pip install 'fenhe[distill]'`"
        ) from error

    config = _changed(read_config(arguments.config), arguments)
    out = Path(config.out)
    if arguments.pick and not arguments.resume and config.work_folder.evaluation.exists() and out.exists():
        _refuse_other_figures(config)
        return _pick(config, arguments.pick)
    if arguments.pick and arguments.no_eval:
        raise ConfigError("--pick chooses by what was measured; leave --no-eval out")
    progress = _Progress()
    distiller = Distiller(config=config, answerer=_answerer, judge=_judge(config), report=progress.show)
    if arguments.dry_run:
        from models.distill.dry_run import plan_run

        print(plan_run(distiller).text())
        return 0
    if arguments.ablation is not None:
        return _ablate(config, arguments.ablation, progress)
    if not arguments.no_eval:
        _refuse_nothing_to_measure(config)
    try:
        if out.exists():
            _check_exported(distiller, out, arguments.resume)
        else:
            distiller.train(resume=arguments.resume)
            distiller.export()
    finally:
        progress.close()
    print(f"wrote {out}; serve it with `fenhe serve --student {out}`")
    if not arguments.no_eval:
        _evaluate(distiller)
    return 0 if arguments.pick is None else _pick(config, arguments.pick)


def _check_exported(distiller: "Distiller", out: Path, is_resumed: bool) -> None:
    """Raises: ConfigError unless the folder was built from this run's exits and the run is to go on."""
    from models.checksums import sha256_of

    in_the_way = f"{out} is in the way; remove it or give another --out"
    if distiller.config.widths is not None:
        if not is_resumed or read_manifest(out).widths_sha256 != sha256_of([distiller.widths_file()]):
            raise ConfigError(f"{in_the_way}, or go on with --resume if it was built from this run's widths")
        return
    exits = distiller.work.exits
    if not (out / MANIFEST_NAME).exists() or not exits.exists():
        raise ConfigError(in_the_way)
    built_from, trained = read_manifest(out).exits_sha256, sha256_of([exits])
    if built_from != trained:
        raise ConfigError(
            f"{in_the_way}. It was built from exits with SHA-256 {built_from[:12] or 'of none'}, "
            f"and {exits} has {trained[:12]}"
        )
    if not is_resumed:
        raise ConfigError(f"{in_the_way}. It has this run's exits: to measure it, go on with --resume")
    distiller.exits_file()
    print(f"{out} has the exits in {exits}; going on with what comes after", file=sys.stderr)


def _refuse_nothing_to_measure(config: "DistillConfig") -> None:
    """Raises: ConfigError before hours of training, rather than after them."""
    if not config.text.heldout_share and not config.data_settings.evaluation_files():
        raise ConfigError(
            "there will be nothing to measure the student with: text.heldout_share is 0 and no eval_*.jsonl file lies "
            "beside the data; set it above 0, name files in text.evaluation, or leave the measuring out with --no-eval"
        )


def _refuse_other_figures(config: "DistillConfig") -> None:
    """Raises: ConfigError when the figures in the work folder are not those of the student in OUT."""
    file = config.work_folder.evaluated_exits
    measured = file.read_text(encoding="utf-8").strip() if file.exists() else "not known"
    built_from = _trained_sha256(read_manifest(Path(config.out)))
    if measured != built_from:
        what = "exits" if config.widths is None else "widths"
        raise ConfigError(
            f"{config.work_folder.evaluation} is not of {config.out}: it was measured of {what} with SHA-256 "
            f"{measured[:12]}, and {config.out} has {built_from[:12] or 'none'}; measure again with --resume"
        )


def _trained_sha256(manifest: Manifest) -> str:
    """Of what a run made the student from: it has exits or widths."""
    return manifest.exits_sha256 or manifest.widths_sha256


def _ablate(config: "DistillConfig", file: Path, progress: "_Progress") -> int:
    from models.distill.ablation import AblationRow, ablate, read_variations, table

    done: list[AblationRow] = []

    def show(row: AblationRow) -> None:
        progress.close()
        done.append(row)
        config.work_folder.ablation.write_text(table(done) + "\n", encoding="utf-8")
        print(f"{row.name}: KL {row.kl:.3f}, agreement {row.agreement:.3f}, {row.seconds:.0f} s", flush=True)

    rows = ablate(config, read_variations(file), answerer=_answerer, report=progress.show, show=show)
    print(table(rows))
    return 0


def _changed(config: "DistillConfig", arguments: argparse.Namespace) -> "DistillConfig":
    """The config with what the command line says instead. The work folder stays where the config has it."""
    return replace(
        config,
        work=str(config.work_folder.path),
        modules=arguments.boundaries or config.modules,
        out=arguments.out or config.out,
    )


def _judge(config: "DistillConfig") -> "Judge | None":
    """The task classifier that ships, where the teacher writes prompts; its abstention is the task `general`."""
    if config.prompts is None:
        return None
    from router.classifier.classify import TaskClassifier

    classifier = TaskClassifier.load()
    return lambda prompt: classifier.classify_text(prompt).task


@contextmanager
def _answerer(source: "ModelSource") -> Iterator["Answerer"]:
    """The teacher as a full-depth student on the engine: many times faster than torch. Built at the first question."""
    yield _LazyAnswerer(source)


class _LazyAnswerer:
    """Builds and starts the teacher's engine when it is first asked: a resumed run mostly never asks."""

    def __init__(self, source: "ModelSource") -> None:
        self._source = source

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        from engines.answerer import EngineAnswerer
        from engines.build import build_engine
        from engines.config import EngineConfig
        from models.sources.fetch import cache_folder
        from models.student.folder import Student

        folder = self._built(cache_folder(os.environ))
        student = Student.open(folder)
        longest = max(map(len, prompts)) + max_tokens
        config = EngineConfig(
            max_context_tokens=min(longest, student.manifest.architecture.max_context_tokens),
            native_folder=cache_folder(os.environ) / "native",
        )
        engine = build_engine(student, config)
        with EngineAnswerer(engine, student.manifest.full_path.name, student.tokenizer.eos_token_ids) as answerer:
            yield from answerer.answer(prompts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)

    def _built(self, cache: Path) -> Path:
        from models.building.build import build_student
        from models.building.progress import show_progress
        from models.sources.source import path_to

        folder = cache / "teachers" / self._source.sha256()[:16]
        if not (folder / MANIFEST_NAME).exists():
            print(f"building the teacher in {folder} (once)", file=sys.stderr)
            with show_progress(lambda line: print(line, file=sys.stderr), "the teacher") as show:
                build_student(path_to(self._source), folder, show=show)
        return folder


def _evaluate(distiller: "Distiller") -> None:
    from engines.evaluation.choices import EvalConfig
    from engines.evaluation.evaluate import evaluate
    from models.evaluation.describe import describe
    from models.evaluation.report import Pictures, write_report
    from models.evaluation.rows import OWN_WORDS, read_file
    from models.evaluation.table import store_evaluation, write_evaluation
    from models.evaluation.texts import read_texts
    from models.sources.fetch import cache_folder
    from models.student.folder import Student

    work, out = distiller.work, Path(distiller.config.out)
    texts = read_texts(distiller.config.data_settings.evaluation_files())
    if distiller.prepared().held_out:
        texts = replace(texts, rows=(*texts.rows, *read_file(work.held_out_rows, OWN_WORDS)))
    config = EvalConfig(native_folder=cache_folder(os.environ) / "native")
    student = Student.open(out)
    evaluation = evaluate(student, texts, config, progress_s=progress_s())
    print(describe(evaluation))
    work.evaluated_exits.unlink(missing_ok=True)
    write_evaluation(work.evaluation, evaluation)
    work.evaluated_exits.write_text(_trained_sha256(student.manifest) + "\n", encoding="utf-8")
    layers = work.boundary_picture if work.boundary_picture.exists() else None
    pictures = Pictures.read(steps=work.log, layers=layers)
    write_report(work.report, evaluation, pictures)
    store_evaluation(out, evaluation)
    print(f"wrote the figures into {out}, {work.evaluation} and {work.report}")


def _pick(config: "DistillConfig", scenario: str) -> int:
    from models.evaluation.front import pick
    from models.evaluation.table import read_evaluation

    chosen = pick(read_evaluation(config.work_folder.evaluation).points, scenario)
    point = chosen.point
    print(f"{scenario}: path {point.path} at {point.precision}: {chosen.reason}")
    print(f"serve it with `fenhe serve --student {config.out} --precision {point.precision}`, model NAME:{point.path}")
    return 0


class _Progress:
    """A bar per phase on a terminal; a line now and then elsewhere."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: tqdm[NoReturn] | None = None

    def show(self, what: str, done: float, total: float, detail: str = "") -> None:
        if what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(total=total, desc=what, mininterval=1.0 if sys.stderr.isatty() else 30.0)
        assert self._bar is not None
        self._bar.update(done - self._bar.n)
        if detail:
            self._bar.set_postfix_str(detail, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, ""
