"""`python -m bench.peers.vllm_folder GGUF STUDENT OUT`: the model as a folder that vLLM's own server takes.

Weights are dequantised from the GGUF, tokenizer and chat template are the student's.
"""

import shutil
import sys
from pathlib import Path

from bench.peers.vllm import write_folder
from models.sources.source import open_source
from models.tokenizer import TOKENIZER_FILES


def write(gguf: Path, student: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_folder(open_source(gguf), out)
    for name in TOKENIZER_FILES:
        if (student / name).exists():
            shutil.copy(student / name, out)


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:4]))
