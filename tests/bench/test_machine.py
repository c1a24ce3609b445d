"""The machine of a bench: a busy one gets a warning."""

from bench.machine import note_busy


def test_busy_machine_is_told() -> None:
    assert note_busy({"load_1min": 0.4, "cores": 2}, "doubtful") == []
    (note,) = note_busy({"load_1min": 1.7, "cores": 2}, "figures are doubtful")
    assert "load 1.7 on 2 cores" in note
    assert note.endswith(": figures are doubtful")


def test_machine_that_tells_no_load_is_not_busy() -> None:
    assert note_busy({"load_1min": "?", "cores": 2}, "doubtful") == []
