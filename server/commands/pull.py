"""`fenhe pull`: fetch a model into the cache."""

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="smollm2-135m, or hf:ORG/NAME[@REVISION]")


def run(arguments: argparse.Namespace) -> int:
    from models.sources.fetch import cache_folder, pull

    print(pull(arguments.name, cache_folder(os.environ), show_progress=sys.stderr.isatty()))
    return 0
