"""A process of its own: `python -m bench.router.first FILE` loads a classifier, decides once, and prints the times."""

import subprocess
import sys
import time
from pathlib import Path

import msgspec

TEXT = "How many apples are left when 3 of 12 are eaten?"


class FirstTimes(msgspec.Struct, frozen=True, kw_only=True):
    """`start_ms`: importing the classifier (numpy with it) and loading the file; `decision_ms`: the first decision."""

    start_ms: float
    decision_ms: float


def time_first(file: Path) -> FirstTimes:
    """Raises: RuntimeError when the process fails."""
    command = [sys.executable, "-m", "bench.router.first", str(file)]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()[-600:]}")
    return msgspec.json.decode(done.stdout, type=FirstTimes)


def main(file: Path) -> None:
    begun_s = time.perf_counter()
    from router.classifier.classify import TaskClassifier

    classifier = TaskClassifier.load(file)
    loaded_s = time.perf_counter()
    classifier.classify_text(TEXT)
    ended_s = time.perf_counter()
    times = FirstTimes(start_ms=(loaded_s - begun_s) * 1000, decision_ms=(ended_s - loaded_s) * 1000)
    print(msgspec.json.encode(times).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
