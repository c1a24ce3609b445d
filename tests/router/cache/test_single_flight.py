"""One generation for all who ask the same: it outlives the request that started it, and ends with the last one."""

from engines.sequence import FinishReason
from router.cache.single_flight import HASTE_S, Flight, Flights
from router.decision import Priority
from tests.router.flights import KEY, TARGET, Ear, end, text


class Watch:
    def __init__(self) -> None:
        self.num_ends = 0
        self.endings: list[bool] = []

    def end(self) -> None:
        self.num_ends += 1

    def finished(self, flight: Flight, is_good: bool) -> None:
        self.endings.append(is_good)


def start(flight: Flight) -> Watch:
    watch = Watch()
    flight.start(TARGET, watch.end, watch.finished)
    return watch


def test_flight_gives_late_joiners_all_there_was_and_what_comes() -> None:
    flight = Flights(9).enter(KEY, 1)
    start(flight)
    early, late = Ear(), Ear()
    flight.join(early)
    flight.push(0, text("one "))
    flight.join(late)
    flight.push(0, text("two"))
    assert (early.words, late.words) == ("one two", "one two")


def test_flight_is_ended_when_the_last_share_is_given_back_and_not_before() -> None:
    flights = Flights(9)
    first = flights.enter(KEY, 1)
    second = flights.enter(KEY, 1)
    assert first is second
    watch = start(first)
    flights.leave(first)
    assert watch.num_ends == 0
    assert len(flights) == 1
    flights.leave(second)
    assert watch.num_ends == 1
    assert len(flights) == 0


def test_flight_finishes_once_all_sequences_have_ended() -> None:
    flights = Flights(9)
    flight = flights.enter(KEY, 2)
    watch = start(flight)
    flight.push(1, end())
    assert watch.endings == []
    flight.push(0, end())
    assert (watch.endings, watch.num_ends) == ([True], 1)
    flights.leave(flight)
    assert watch.num_ends == 1


def test_flight_that_finished_may_be_joined_until_it_is_dropped() -> None:
    flights = Flights(9)
    flight = flights.enter(KEY, 1)
    start(flight)
    flight.push(0, end(words="all"))
    flights.leave(flight)
    late = Ear()
    again = flights.enter(KEY, 1)
    assert again is flight
    again.join(late)
    assert late.words == "all"
    flights.drop(flight)
    assert flights.enter(KEY, 1) is not flight


def test_flight_that_failed_says_so_once_and_at_once() -> None:
    flights = Flights(9)
    flight = flights.enter(KEY, 2)
    watch = start(flight)
    flight.push(0, end(FinishReason.ERROR))
    assert watch.endings == [False]
    flight.push(1, end())
    assert watch.endings == [False]


def test_flights_of_one_key_are_full_at_their_bound() -> None:
    flights = Flights(2)
    joined = [flights.enter(KEY, 1) for _ in range(2)]
    alone = flights.enter(KEY, 1)
    assert joined[0] is joined[1] is not alone
    flights.leave(alone)
    assert flights.enter_alone(KEY, 1) is not joined[0]
    assert len(flights) == 1


def test_flights_of_other_priorities_are_apart_until_one_has_begun() -> None:
    flights = Flights(9)
    low, high = (flights.enter(KEY, 1, priority) for priority in (Priority.LOW, Priority.HIGH))
    assert low is not high
    assert flights.enter(KEY, 1, Priority.LOW) is low
    assert flights.enter(KEY, 1, Priority.HIGH) is high
    start(low)
    assert all(flights.enter(KEY, 1, priority) is low for priority in Priority)


def test_flight_that_queues_with_more_time_is_not_waited_for() -> None:
    flights = Flights(9)
    patient = flights.enter(KEY, 1, deadline_s=100.0)
    assert flights.enter(KEY, 1, deadline_s=100.0 - HASTE_S / 2) is patient
    hasty = flights.enter(KEY, 1, deadline_s=50.0)
    assert hasty is not patient
    assert flights.enter(KEY, 1, deadline_s=100.0) is hasty
    flights.leave(patient)
    assert flights.enter(KEY, 1, deadline_s=100.0) is hasty
    start(hasty)
    assert flights.enter(KEY, 1, deadline_s=1.0) is hasty


def test_flights_that_nobody_else_may_join_are_spoiled_too() -> None:
    flights = Flights(1)
    shared = flights.enter(KEY, 1)
    surplus, alone = flights.enter(KEY, 1), flights.enter_alone(KEY, 1)
    flights.invalidate("tiny:")
    assert [flight.is_storable for flight in (shared, surplus, alone)] == [False] * 3


def test_flights_that_are_spoiled_are_neither_kept_nor_joined() -> None:
    flights = Flights(9)
    flight, other = flights.enter(KEY, 1), flights.enter("other:full:1", 1)
    flights.invalidate("tiny:")
    assert (flight.is_storable, other.is_storable) == (False, True)
    newer = flights.enter(KEY, 1)
    assert newer is not flight
    flights.leave(flight)
    assert flights.enter(KEY, 1) is newer
