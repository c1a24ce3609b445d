"""`fenhe inspect`: show what a student folder holds."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="the manifest itself")
    parser.add_argument("--verify", action="store_true", help="compare every file with its SHA-256")


def run(arguments: argparse.Namespace) -> int:
    from models.student.manifest import MANIFEST_NAME, read_manifest

    read_manifest(arguments.folder)
    if arguments.verify:
        from models.student.folder import Student

        Student.open(arguments.folder).verify(anew=True)
        print("every file has the SHA-256 that the manifest names")
        return 0
    if arguments.json:
        sys.stdout.write((arguments.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return 0
    from models.student.inspect import describe

    print(describe(arguments.folder))
    return 0
