from engines.remote.upstream import AFFINITY_SLACK, Upstream, choose, make_upstream


def make(*names: str) -> list[Upstream]:
    return [make_upstream(f"http://{name}:80", None, 2, 10.0) for name in names]


def test_a_url_without_a_path_gets_openais() -> None:
    urls = ("http://a:80", "http://a:80/", "http://a:80/v1/", "https://a/openai/v1")
    found = [make_upstream(url, None, 1, 1.0).url for url in urls]
    assert found == ["http://a:80/v1", "http://a:80/v1", "http://a:80/v1", "https://a/openai/v1"]


def test_the_least_loaded_is_chosen() -> None:
    one, two = make("a", "b")
    one.num_running = 1
    assert choose([one, two], "m", "", []) is two
    assert choose([one, two], "m", "", [two]) is one
    assert choose([one, two], "m", "", [one, two]) is None


def test_equal_beginnings_go_to_one_replica_until_it_is_busy() -> None:
    several = make("a", "b", "c")
    homes = {number: choose(several, "m", f"beginning {number}", []) for number in range(60)}
    assert set(map(id, homes.values())) == set(map(id, several))
    home = homes[0]
    assert home is not None
    home.num_running = AFFINITY_SLACK
    assert choose(several, "m", "beginning 0", []) is home
    home.num_running = AFFINITY_SLACK + 1
    assert choose(several, "m", "beginning 0", []) is not home


def test_a_replica_that_goes_moves_only_its_own() -> None:
    several = make("a", "b", "c")
    before = {number: choose(several, "m", f"{number}", []) for number in range(60)}
    several[0].is_there = False
    after = {number: choose(several, "m", f"{number}", []) for number in range(60)}
    assert all(after[number] is one for number, one in before.items() if one is not several[0])
    assert several[0] not in after.values()


def test_only_those_that_have_the_model_are_asked() -> None:
    one, two = make("a", "b")
    one.models = frozenset({"other"})
    assert choose([one, two], "m", "x", []) is two
    two.models = frozenset({"other"})
    assert choose([one, two], "m", "x", []) is None


def test_failures_in_a_row_leave_it_alone_for_a_while() -> None:
    (one,) = make("a")
    one.fail("failed")
    assert one.can_be_asked
    one.fail("failed")
    assert not one.can_be_asked
    one.succeed()
    assert one.can_be_asked
    one.fail("cannot be reached", is_gone=True)
    assert not one.can_be_asked


def test_a_slow_one_is_asked_last() -> None:
    one, two = make("a", "b")
    one.is_slow, two.num_running = True, 5
    assert choose([one, two], "m", "x", []) is two
    assert choose([one, two], "m", "x", [two]) is one
