"""A grammar is tried out in a process whose time and memory are bounded, and which goes when the server does."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.config import MIB
from engines.grammar_process import PROGRAM, TrialDied, TrialProcess, TrialTooLong
from engines.grammar_trial import NICENESS, Trial, Words
from engines.schema_loosening import SchemaRule

TIME_S = 60.0
COSTLY = {"allOf": [{"type": "string", "pattern": f".*a.{{{30 + i}}}b.*"} for i in range(13)]}
"""Two seconds and hundreds of MB."""
WORDS = Words(
    tokens=[bytes([byte]) for byte in range(256)] + [b""],
    special_ids=frozenset({256}),
    eos_token_ids=frozenset({256}),
    num_logits=258,
)


def trial_of(schema: dict[str, Any], time_limit_s: float = TIME_S) -> Trial:
    rule = SchemaRule.of(schema, name="body", where="f")
    return Trial(rules="start: body", schemas=[rule], time_limit_s=time_limit_s)


@pytest.fixture
def process() -> Iterator[TrialProcess]:
    one = TrialProcess(lambda: WORDS)
    yield one
    one.close()


def test_trials_share_a_process_and_say_what_a_grammar_holds(process: TrialProcess) -> None:
    assert process.pid is None
    small = process.run(trial_of({"type": "integer"}))
    pid = process.pid
    large = process.run(trial_of({"properties": {f"p{i}": {} for i in range(100)}}))
    assert process.pid == pid
    assert small.problem is None
    assert 0 < small.num_bytes < large.num_bytes


def test_a_schema_s_problem_comes_with_its_place(process: TrialProcess) -> None:
    outcome = process.run(trial_of({"properties": {"a": {"type": "strng"}}}))
    assert (outcome.where, outcome.pointer) == ("f", "/properties/a")
    assert "`type`" in str(outcome.problem)


def test_a_trial_that_takes_too_long_is_ended_and_the_next_one_runs(process: TrialProcess) -> None:
    process.run(trial_of({"type": "integer"}))
    pid = process.pid
    assert pid is not None
    with pytest.raises(TrialTooLong):
        process.run(trial_of(COSTLY, 0.05))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert process.run(trial_of({"type": "integer"})).problem is None


def test_memory_is_bounded() -> None:
    process = TrialProcess(lambda: msgspec.structs.replace(WORDS, work_bytes=32 * MIB))
    with pytest.raises(TrialDied) as caught:
        process.run(trial_of(COSTLY))
    assert caught.value.blames_trial
    assert process.run(trial_of({"type": "integer"})).problem is None
    process.close()


def test_a_killed_process_tells_and_the_next_one_runs(process: TrialProcess) -> None:
    process.run(trial_of({"type": "integer"}))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(TrialDied) as caught:
        process.run(trial_of({"type": "integer"}))
    assert not caught.value.blames_trial
    assert process.run(trial_of({"type": "integer"})).problem is None


def test_a_process_that_cannot_start_blames_no_schema(process: TrialProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TrialDied, match="did not start") as caught:
        process.run(trial_of({"type": "integer"}))
    assert not caught.value.blames_trial
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(TrialDied, match="did not get ready") as caught:
        process.run(trial_of({"type": "integer"}))
    assert not caught.value.blames_trial


def test_the_engine_comes_before_a_trial(process: TrialProcess) -> None:
    """In the server's own session, where niceness counts, but out of reach of what interrupts it in a terminal."""
    process.run(trial_of({"type": "integer"}))
    assert process.pid is not None
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.getpgid(process.pid) == process.pid
    nice, own = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (process.pid, 0))
    assert nice == min(own + NICENESS, 19)


def test_secrets_are_not_handed_on(process: TrialProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENHE_ADMIN__KEY_SHA256", "secret")
    process.run(trial_of({"type": "integer"}))
    assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_nothing_is_left_after_close(process: TrialProcess) -> None:
    process.run(trial_of({"type": "integer"}))
    pid = process.pid
    assert pid is not None
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(TrialDied):
        process.run(trial_of({"type": "integer"}))


def test_a_process_whose_server_is_gone_ends() -> None:
    program = subprocess.run(
        [sys.executable, "-m", PROGRAM], input=b"", capture_output=True, timeout=TIME_S, check=False
    )
    assert (program.returncode, program.stdout) == (0, b"")
