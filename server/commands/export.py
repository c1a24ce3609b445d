"""`fenhe export`: write what other tools want to know of a student."""

import argparse
from pathlib import Path

from models.errors import ConfigError
from server.commands.named_student import HELP, folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", help=HELP)
    parser.add_argument(
        "--format",
        choices=("hf", "vllm"),
        default="hf",
        help="hf: tokenizer, configuration and template, for transformers; vllm: its weights too",
    )
    parser.add_argument(
        "--path", metavar="NAME", help="with --format vllm: this path alone, as a plain checkpoint that any tool loads"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")


def run(arguments: argparse.Namespace) -> int:
    """Raises: ConfigError, WeightsError."""
    if arguments.format == "vllm":
        print(_with_weights(folder_of(arguments.student), arguments.path, arguments.out))
        return 0
    if arguments.path is not None:
        raise ConfigError("--path: a path has weights of its own, so it needs --format vllm")
    from models.student.hugging_face_folder import export_hugging_face

    student = export_hugging_face(folder_of(arguments.student), arguments.out)
    print(
        f"exported {student.manifest.name} to {arguments.out}: its tokenizer, configuration and template, without "
        "weights; give the folder to other tools as their --tokenizer"
    )
    return 0


def _with_weights(folder: Path, path: str | None, out: Path) -> str:
    """Exports; returns what to say of it."""
    from engines.vllm.export import export_path, export_student

    if path is not None:
        student = export_path(folder, path, out)
        return f"exported path {path} of {student.manifest.name} to {out}: a plain checkpoint, for any tool"
    student = export_student(folder, out)
    return f"exported {student.manifest.name} to {out}, for vLLM with fenhe's plug-in: docs/engines.md has the options"
