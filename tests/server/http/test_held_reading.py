"""Reading that is held stays held, whoever asks to go on."""

from typing import Any

from server.http.held_reading import HeldReading


class Transport:
    def __init__(self) -> None:
        self.is_reading = True

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True


def test_application_cannot_resume_what_is_held() -> None:
    transport: Any = Transport()
    reading = HeldReading(transport)
    reading.hold()
    reading.hold()
    reading.resume_reading()
    assert not transport.is_reading
    reading.release()
    assert transport.is_reading


def test_release_resumes_only_what_was_held() -> None:
    transport: Any = Transport()
    reading = HeldReading(transport)
    reading.pause_reading()
    reading.release()
    assert not transport.is_reading
    reading.resume_reading()
    assert transport.is_reading
