"""What was ignored of a body: bounded in names and in places."""

from server.wire.ignored import BOOKKEEPING, HARMLESS, MAX_PLACE_CHARS, MAX_PLACES, OTHER, Ignored, label_of


def test_labels_are_a_known_set_whatever_clients_send() -> None:
    ignored = Ignored()
    for index in range(1000):
        ignored.add(f"made-up-{index}", "messages[0]")
    for name in (*HARMLESS, *BOOKKEEPING):
        ignored.add(name)
    assert ignored.labels == {OTHER, *HARMLESS, *BOOKKEEPING}
    assert ignored.num == 1000 + len(HARMLESS) + len(BOOKKEEPING)


def test_places_are_few_and_short() -> None:
    ignored = Ignored()
    for _ in range(MAX_PLACES + 5):
        ignored.add("x" * 10_000, "messages[3]")
    assert len(ignored.places) == MAX_PLACES
    assert {len(place) for place in ignored.places} == {MAX_PLACE_CHARS}
    assert ignored.places[0].startswith("messages[3].xxx")


def test_nothing_ignored_is_false() -> None:
    assert not Ignored()
    assert label_of("user") == "user"
    assert label_of("users") == OTHER
