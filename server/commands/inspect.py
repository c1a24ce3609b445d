"""`fenhe inspect`: show what a student folder holds."""

import argparse
import sys

from server.commands.named_student import DEFAULT, HELP, folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", nargs="?", default=DEFAULT, help=f"{HELP} (without: that)")
    parser.add_argument("--json", action="store_true", help="the manifest itself")
    parser.add_argument("--verify", action="store_true", help="compare every file with its SHA-256")


def run(arguments: argparse.Namespace) -> int:
    from models.student.manifest import MANIFEST_NAME, read_manifest

    folder = folder_of(arguments.student)
    read_manifest(folder)
    if arguments.verify:
        from models.student.folder import Student

        Student.open(folder).verify(anew=True)
        print("every file has the SHA-256 that the manifest names")
        return 0
    if arguments.json:
        sys.stdout.write((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return 0
    from models.student.inspect import describe

    print(describe(folder))
    return 0
