"""`fenhe export`: write what other tools want to know of a student."""

import argparse
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", help="a student's folder, or smollm2-135m for the default student")
    parser.add_argument(
        "--format", choices=("hf",), default="hf", help="hf: tokenizer, configuration and template, for transformers"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")


def run(arguments: argparse.Namespace) -> int:
    from models.student.hugging_face_folder import export_hugging_face

    student = export_hugging_face(_folder_of(arguments.student), arguments.out)
    print(
        f"exported {student.manifest.name} to {arguments.out}: its tokenizer, configuration and template, without "
        "weights; give the folder to other tools as their --tokenizer"
    )
    return 0


def _folder_of(name: str) -> Path:
    from models.building.default_student import DEFAULT_MODEL, find_student

    if name != DEFAULT_MODEL or Path(name).exists():
        return Path(name)
    return find_student(os.environ, lambda line: print(line, file=sys.stderr))
