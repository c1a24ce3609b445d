"""What engines with a thread of their own have in common: sequences are accepted on any thread, run and ended on that
one, and every one of them ends with an event, whatever happens.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from engines.config import EngineConfig
from engines.contract import Publish
from engines.loop.commands import Abort, Accept, Audit, Command, Commands, FailToLoad, ListSequences, Wake
from engines.loop.living import LivingSequences
from engines.sequence import Finish, FinishReason, Sequence, SequenceEvent, SequenceState
from models.errors import EngineUnhealthy, GrammarFailed, ServingError
from models.student.folder import Student

logger = logging.getLogger(__name__)

SEE_LOG = "the server's log has the details"
"""What an engine raises may contain file names and other internals: clients read this instead."""


class SequenceEngine(ABC):
    """The part of `Engine` that does not depend on what computes. A subclass keeps the sequences that it was given and
    says what a turn of the thread is. `wake` is called with every command, for a thread that waits for something else.
    """

    def __init__(
        self, student: Student, config: EngineConfig, *, thread_name: str, wake: Callable[[], None] | None = None
    ) -> None:
        self._manifest = student.manifest
        self._tokenizer = student.tokenizer
        self._thread = threading.Thread(target=self._serve, name=thread_name, daemon=True)
        self._commands = Commands(self._thread.is_alive, wake)
        self._living = LivingSequences(config.max_running + config.max_waiting, self._commands)
        self._events: list[SequenceEvent] = []
        self._publish: Publish = lambda events: None

    # The contract: called from any thread.

    def start(self, publish: Publish) -> None:
        self._publish = publish
        self._thread.start()

    def abort(self, sequence_id: str) -> None:
        self._living.abort(sequence_id)

    def sequences(self, limit_s: float) -> list[SequenceState]:
        return self._commands.ask(ListSequences(), limit_s)

    def audit(self, limit_s: float) -> list[str]:
        try:
            return self._commands.ask(Audit(), limit_s)
        except EngineUnhealthy as error:
            return [error.message]

    def stop(self, grace_s: float) -> None:
        self._living.stop(grace_s)
        if self._thread.is_alive():
            self._thread.join()

    # The engine's thread.

    @abstractmethod
    def _turn(self) -> None:
        """Do what there is to do, or wait a moment for it. Raises: whatever ends the engine for good."""

    @abstractmethod
    def _accept(self, sequence: Sequence) -> None: ...

    @abstractmethod
    def _abort(self, sequence_id: str) -> None: ...

    @abstractmethod
    def _known(self) -> Iterable[Sequence]:
        """The sequences that have not ended."""

    @abstractmethod
    def _end(self, sequence: Sequence, reason: FinishReason, *, error: ServingError | None = None) -> None:
        """End a sequence: free all it holds, and add its final event."""

    @abstractmethod
    def _find_inconsistencies(self) -> list[str]: ...

    def _close(self) -> None:  # noqa: B027 - most have nothing to close
        """Called at the end of the thread, when every sequence has ended."""

    def _serve(self) -> None:
        """Serve until asked to stop. Whatever happens, every sequence ends with an event."""
        try:
            while not self._living.is_over():
                self._turn()
                self._flush()
        except BaseException as error:  # a panic of a Rust library is no Exception
            logger.exception("engine thread failed student=%s", self._manifest.name)
            self._give_up("the engine failed", error)
        try:
            self._take_commands()
            self._end_all(FinishReason.ABORT, None)
            self._flush()
        finally:
            self._close()

    def _flush(self) -> None:
        events, self._events = self._events, []
        if events:
            self._publish(events)

    def _end_all(self, reason: FinishReason, error: ServingError | None) -> None:
        for sequence in list(self._known()):
            try:
                self._end(sequence, reason, error=error)
            except Exception:  # what one held must not keep the others from their events
                logger.exception("ending failed student=%s sequence=%s", self._manifest.name, sequence.id)

    def _give_up(self, what: str, cause: BaseException) -> None:
        """Be unhealthy from now on; only operators see the cause."""
        self._refuse(EngineUnhealthy(f"{what}; {SEE_LOG}"), f"{what}: {cause!r}")

    def _refuse(self, error: EngineUnhealthy, detail: str) -> None:
        """End every sequence with an error and refuse new ones until `LivingSequences.recover`."""
        ended = sorted(self._living.fail(error, detail))
        logger.error("engine unhealthy student=%s error=%s sequences=%s", self._manifest.name, detail, ended)
        self._take_commands()
        self._end_all(FinishReason.ERROR, error)

    def _advance(self, sequence: Sequence, token_id: int) -> GrammarFailed | None:
        """Advance the sequence's grammar by its next token; the error when that failed, which ends this sequence and no
        other."""
        if sequence.matcher is None:
            return None
        try:
            sequence.matcher.advance(token_id)
        except GrammarFailed as error:
            logger.error("grammar failed sequence=%s error=%s", sequence.id, error.message)
            return error
        return None

    # Commands from other threads.

    def _take_commands(self, wait_s: float | None = None) -> None:
        """Carry out what other threads asked for; wait for the first up to `wait_s`."""
        for command in self._commands.take(wait_s):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Accept(sequence=sequence):
                self._accept(sequence)
            case Abort(sequence_id=sequence_id):
                self._abort(sequence_id)
            case FailToLoad(cause=cause):
                self._give_up("the student cannot be loaded", cause)
            case ListSequences():
                command.answer(self._sequence_states)
            case Audit():
                command.answer(self._find_inconsistencies)
            case Wake():
                pass

    def _sequence_states(self) -> list[SequenceState]:
        return [sequence.state() for sequence in self._known() if not sequence.in_background]


def finish_of(
    sequence: Sequence, reason: FinishReason, error: ServingError | None = None, end_token_id: int | None = None
) -> Finish:
    """How a sequence ended, by what it has come to."""
    return Finish(
        reason=reason,
        path=sequence.path,
        usage=sequence.usage(),
        timings=sequence.timings(),
        stop=sequence.text.matched,
        error=error,
        end_token_id=end_token_id,
    )
