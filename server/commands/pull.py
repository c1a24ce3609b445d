"""`fenhe pull`: fetch a model into the cache."""

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="smollm2-135m, or hf:ORG/NAME[@REVISION]")
    parser.add_argument("--build", action="store_true", help="also build the default student, as the first start would")


def run(arguments: argparse.Namespace) -> int:
    from models.building.default_student import DEFAULT_MODEL, find_student
    from models.errors import ConfigError
    from models.sources.fetch import cache_folder, pull

    if arguments.build:
        if arguments.name != DEFAULT_MODEL:
            raise ConfigError(
                f"--build is for {DEFAULT_MODEL}; pull {arguments.name} without it, then `fenhe build` what was pulled"
            )
        print(find_student(os.environ, lambda line: print(line, file=sys.stderr, flush=True)))
        return 0
    print(pull(arguments.name, cache_folder(os.environ), show_progress=sys.stderr.isatty()))
    return 0
