"""Build the library ahead of time. Without FOLDER it is put beside the source, where it is looked for first."""

import sys
from pathlib import Path

from engines.native.build import PACKAGE, build_library

print(build_library(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE))
