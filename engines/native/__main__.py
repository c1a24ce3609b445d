"""Build the library ahead of time. Without FOLDER it is put beside the source, where it is looked for first."""

import argparse
from pathlib import Path

from engines.native.build import PACKAGE, build_library

parser = argparse.ArgumentParser(prog="python -m engines.native", description=__doc__)
parser.add_argument("folder", nargs="?", type=Path, default=PACKAGE, metavar="FOLDER")
print(build_library(parser.parse_args().folder))
