"""`fenhe head`: fit a cheap head to a model, for `fenhe build --head`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from models.errors import ConfigError
from server.commands.eval import progress_s

if TYPE_CHECKING:
    from engines.evaluation.final_states import Float
    from models.building.head_fit import FittedHead, HeadFitConfig
    from models.sources.source import ModelSource
    from models.student.folder import Student

MAX_TEXT_TOKENS = 512
DEFAULT_POSITIONS = 60_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="the model, as `fenhe build` takes it")
    parser.add_argument("--student", type=Path, required=True, help="a student built from it, whose paths give states")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL rows of task, prompt and answer, or of text: the kinds of text that are to be served",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the head file to write")
    parser.add_argument("--rank", type=int, default=48, help="dimensions of the preview (default: 48)")
    parser.add_argument("--frequent", type=int, default=1024, help="tokens that are always exact (default: 1024)")
    parser.add_argument("--candidates", type=int, default=4096, help="most other exact tokens (default: 4096)")
    parser.add_argument(
        "--reach", type=float, default=11.0, metavar="NATS", help="how far below the best they may be (default: 11)"
    )
    parser.add_argument("--steps", type=int, default=300, help="steps of refining; 0: closed form alone (default: 300)")
    parser.add_argument("--positions", type=int, default=DEFAULT_POSITIONS, help="positions to fit to (default: 60000)")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    from models.building.head_file import HeadPlan, write_head_file
    from models.sources.source import open_source
    from models.student.folder import Student

    _check(arguments)
    source, student = open_source(arguments.source), Student.open(arguments.student)
    config = _config(arguments, source)
    states = _states(source, student, arguments)
    fitted = _fitted(states, source, config)
    training = {"positions": len(states), "steps": config.steps, "seed": config.seed}
    plan = HeadPlan(
        source_sha256=source.sha256(),
        num_candidates=config.num_candidates,
        reach=config.reach,
        frequent=fitted.frequent,
        mean_candidates=fitted.mean_candidates,
        training=training | {"student": student.manifest.name, "data": [file.name for file in arguments.data]},
    )
    tensors = {"project": fitted.project, "expand": fitted.expand, "bias": fitted.bias}
    write_head_file(arguments.out, plan, tensors)
    print(f"wrote {arguments.out}; build it in with `fenhe build {arguments.source} --head {arguments.out} --out DIR`")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises: ConfigError for what would be found only after everything has been read and fitted."""
    problems, out = [], arguments.out
    if arguments.positions < 1:
        problems.append(f"--positions must be at least 1, not {arguments.positions}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        problems.append(f"--out {out}: name a file in a folder that exists")
    if problems:
        raise ConfigError(*problems)


def _config(arguments: argparse.Namespace, source: "ModelSource") -> "HeadFitConfig":
    """Raises: ConfigError for sizes that do not fit the model, or without torch."""
    try:
        from models.building.head_fit import HeadFitConfig
    except ImportError as error:
        raise ConfigError(f"`fenhe head` needs {error.name}; install it with `pip install 'fenhe[distill]'`") from error
    config = HeadFitConfig(
        rank=arguments.rank,
        num_frequent=arguments.frequent,
        num_candidates=arguments.candidates,
        reach=arguments.reach,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    config.check(source.architecture.hidden_size, source.architecture.vocab_size)
    return config


def _states(source: "ModelSource", student: "Student", arguments: argparse.Namespace) -> "Float":
    """Normed states of all paths, in the model's own basis. Shapes: returns [positions, hidden_size]."""
    from engines.build import build_runner
    from engines.config import EngineConfig
    from engines.evaluation.final_states import collect_states, model_states, read_texts
    from engines.evaluation.scorer import PathRuns, stages_of
    from models.graphs.precisions import PRECISIONS
    from models.sources.fetch import cache_folder

    if student.manifest.source_sha256 != source.sha256():
        raise ConfigError(f"{arguments.student} was not built from {arguments.source}; name a student that was")
    texts = read_texts(arguments.data, student.tokenizer, max_tokens=MAX_TEXT_TOKENS, seed=arguments.seed)
    context = min(MAX_TEXT_TOKENS, student.manifest.architecture.max_context_tokens)
    engine = EngineConfig(max_context_tokens=context, head="exact", native_folder=cache_folder(os.environ) / "native")
    runner = build_runner(student, engine)
    paths = [path.name for path in student.manifest.paths if student.manifest.exit(path.exit).is_trained]
    for stage in stages_of(student.manifest, paths):
        runner.load(stage)
    progress = tqdm(texts, desc="reading texts", unit="text", mininterval=progress_s())
    states = collect_states(PathRuns(runner, student.manifest, paths), student.manifest, progress, arguments.positions)
    return model_states(states, source, is_rotated=PRECISIONS[runner.variant].is_rotated)


def _fitted(states: "Float", source: "ModelSource", config: "HeadFitConfig") -> "FittedHead":
    from models.building.head_fit import fit_head
    from models.graphs.decoder_graph import head_weight

    with tqdm(total=config.steps, desc="fitting", unit="step", mininterval=progress_s()) as progress:

        def show(step: int, kl: float) -> None:
            progress.update(step + 1 - progress.n)
            progress.set_postfix(kl=f"{kl:.4f}")

        return fit_head(states, source.read(head_weight(source)), config, show)
