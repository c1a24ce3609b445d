"""`fenhe bench distill`: training exits with fenhe, beside a plain distillation loop over transformers' models."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.machine import note_busy
from bench.options import add_debug, add_json, add_rounds, find_unwritable
from bench.report import report_progress, write_document
from bench.rounds import count_rounds
from engines.machine import Description, describe_machine, describe_versions
from models.building.default_student import DEFAULT_MODEL
from models.errors import ConfigError
from models.sources.fetch import cache_folder, pull

if TYPE_CHECKING:
    from bench.distill.figures import Round
    from bench.distill.peer import Peer
    from bench.distill.work import Work

PACKAGES = ("torch", "transformers", "accelerate")


def run(argv: Sequence[str]) -> int:
    """Measure and print. Raises: ConfigError."""
    options = read_options(argv)
    try:
        from bench.distill.figures import compute_figures, make_document, render_table
        from bench.distill.peer import Peer
        from bench.distill.work import prepare_work
    except ImportError as error:
        raise ConfigError(
            f"`fenhe bench distill` needs {error.name}; install it with `pip install 'fenhe[dev]'`"
        ) from error

    machine = describe_machine()
    teacher = options.teacher or pull(DEFAULT_MODEL, cache_folder(os.environ), show_progress=sys.stderr.isatty())
    report_progress("reading the teacher's weights")
    work = prepare_work(
        teacher,
        modules=options.modules,
        num_tokens=options.tokens,
        batch_tokens=options.batch_tokens,
        is_whole_vocabulary=options.whole_vocabulary,
        device=options.device,
    )
    peer = Peer(work)
    found = compute_figures(run_rounds(work, peer, options.rounds), work.num_tokens, options.epochs)
    versions, notes = describe_versions(PACKAGES), make_notes(work, peer, options.epochs, machine)
    print(render_table(found, machine, versions, notes))
    write_document(options.json, make_document(found, machine, versions, notes))
    return 0


def run_rounds(work: "Work", peer: "Peer", num_rounds: int) -> "list[Round]":
    """Each side once a round; the sides take turns in going first."""
    from bench.distill.figures import Round
    from bench.distill.ours import time_ours

    rounds = []
    for number in count_rounds(num_rounds, report_progress):
        peer_s = _time_peer(work, peer) if number % 2 else None
        with TemporaryDirectory(prefix="fenhe-bench-") as folder:
            ours = time_ours(work, Path(folder))
        rounds.append(Round(ours=ours, peer_s=peer_s or _time_peer(work, peer)))
    return rounds


def _time_peer(work: "Work", peer: "Peer") -> dict[str, float]:
    return {exit.path_name: peer.time_exit(exit) for exit in work.layout.exits}


def make_notes(work: "Work", peer: "Peer", epochs: float, machine: Description) -> list[str]:
    """What was compared, and what makes the figures doubtful."""
    exits = ", ".join(f"{exit.path_name} behind {work.layout.depth(exit)} layers" for exit in work.layout.exits)
    head_tokens = work.config.training.head_tokens
    loss = "the whole vocabulary" if head_tokens is None else f"a batch's likely tokens and {head_tokens} random ones"
    longest = max(example.num_tokens for example in work.examples)
    return [
        f"peer: {peer.name}, one exit after another, KL over the whole vocabulary, teacher run at every step",
        f"fenhe: all exits at once, KL over {loss}, with a map before the exit's layer, which the peer does not have",
        f"teacher: {work.config.teacher}, {work.source.architecture.num_layers} layers; exits: {exits}",
        f"text: {work.num_tokens} tokens of held-out text in windows of up to {longest}, {len(work.order)} batches, "
        "the same for both",
        f"computed in {work.trunk.dtype}, trained weights in float32, on {work.trunk.device}; "
        f"reading charged to {epochs:g} epochs",
        *note_busy(machine, "figures are doubtful"),
    ]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fenhe bench distill", description=__doc__)
    parser.add_argument("--teacher", type=Path, metavar="PATH", help="a Llama: GGUF file or Hugging Face folder")
    parser.add_argument("--modules", metavar="NAME:LAYERS,...", help="where to cut; an exit behind each but the last")
    add_rounds(parser, 3, "interleaved rounds (default 3)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="text to train on (default 8192)")
    parser.add_argument("--batch-tokens", type=int, default=2048, metavar="N", help="of both sides (default 2048)")
    parser.add_argument("--epochs", type=float, default=4.0, metavar="E", help="that share the reading (default 4)")
    parser.add_argument("--whole-vocabulary", action="store_true", help="our loss too is over the whole vocabulary")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    add_json(parser)
    add_debug(parser)
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: ConfigError that lists every mistake."""
    options = make_parser().parse_args(argv)
    positive = ("rounds", "tokens", "batch_tokens", "epochs")
    problems = [
        f"--{name.replace('_', '-')} must be above 0, not {getattr(options, name)}"
        for name in positive
        if not getattr(options, name) > 0
    ]
    if options.teacher is not None and not options.teacher.exists():
        problems.append(f"--teacher {options.teacher}: no such file or folder")
    problems += find_unwritable(options.json)
    if problems:
        raise ConfigError(*problems)
    return options
