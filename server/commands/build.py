"""`fenhe build`: cut a model into a student folder."""

import argparse
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a GGUF file or a Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="the student folder to write")
    parser.add_argument("--name", help="the student's name (default: from the source)")
    parser.add_argument("--modules", metavar="NAME:LAYERS,...", help="knowledge:9,reasoning:15,adapter:6, for example")
    parser.add_argument("--exits", type=Path, metavar="FILE", help="trained exits to build in; they say where to cut")
    parser.add_argument("--head", type=Path, metavar="FILE", help="a cheap head to build in, from `fenhe head`")
    parser.add_argument("--widths", type=Path, metavar="FILE", help="narrow paths to build in, from a file of widths")
    parser.add_argument("--precision", metavar="NAME,...", help="variants to write (default: what serving needs)")


def run(arguments: argparse.Namespace) -> int:
    from models.building.build import build_student
    from models.building.progress import show_progress

    named = arguments.precision
    with show_progress(lambda line: print(line, file=sys.stderr, flush=True), arguments.out.name) as show:
        manifest = build_student(
            arguments.source,
            arguments.out,
            name=arguments.name,
            modules=arguments.modules,
            precisions=_default_precisions(arguments) if named is None else named.split(","),
            exits=arguments.exits,
            head=arguments.head,
            widths=arguments.widths,
            show=show,
        )
    print(f"built {manifest.name} in {arguments.out}; see it with `fenhe inspect {arguments.out}`")
    full = manifest.full_path
    raw = [path.name for path in manifest.paths if path != full and not manifest.exit(path.exit).is_trained]
    if raw:
        print(f"the exits of {', '.join(raw)} are not trained: expect no sense from these paths before `fenhe distill`")
    return 0


def _default_precisions(arguments: argparse.Namespace) -> tuple[str, ...]:
    from engines.native import library_path
    from models.building.blocks import serving_precisions
    from models.sources.fetch import cache_folder
    from models.sources.source import open_source

    return serving_precisions(
        open_source(arguments.source),
        has_native=library_path(cache_folder(os.environ) / "native") is not None,
        has_widths=arguments.widths is not None,
        has_head=arguments.head is not None,
    )
