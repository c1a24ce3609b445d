"""The named figures of a comparison, from findings that are known beforehand."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from loadtest.comparison.figures import MEANINGS, figures, table, verdicts
from loadtest.comparison.markdown import markdown
from loadtest.comparison.measuring import Point
from loadtest.comparison.page import write_page
from loadtest.comparison.pictures import write_pictures
from loadtest.comparison.servers import RunningServer
from loadtest.comparison.stages import QUICK, Findings, in_turn, short_prompts
from loadtest.measure.figures import FORMULAS
from loadtest.measure.verdict import Status


def point(**fields: Any) -> Point:
    given: dict[str, Any] = {
        "rate": None,
        "concurrency": None,
        "seed": 1,
        "status": Status.GOOD,
        "figures": {"success_rate": 1.0, "output_throughput": 100.0, "user_tokens_per_s": 20.0, "request_goodput": 2.0},
        "quantiles": {"ttft_ms": [float(share) for share in range(1, 102)]},
        "by_task": {"math": {"median_e2el_ms": 700.0}},
        "problems": [],
        "resident_mib": 500.0,
    }
    return Point(**given | fields)


def findings(knees: list[float], users: list[int], role: str = "ours", *, batches: bool = True) -> Findings:
    found = Findings(about="x", flags=["serve"], role=role, batches=batches, knees=knees, concurrencies=users)
    found.ladder = [point(concurrency=1), point(concurrency=8)]
    found.sweep = [point(rate=knee) for knee in knees]
    return found


SERVERS = {
    "routed": findings([8.0, 10.0, 9.0], [20, 20, 20]),
    "full": findings([6.0], [10]),
    "full-uncached": findings([4.0], [8]),
    "one-at-a-time": findings([1.5], [2]),
    "llama-cpp-server": findings([1.0], [1], "peer", batches=False),
    "openvino": findings([2.0], [4], "peer"),
    "slower": findings([1.2], [4], "peer"),
    "vllm": Findings(absent="not installed", role="peer"),
}


def test_ratios_are_those_of_the_medians() -> None:
    short = {"speedups": [1.4, 1.6, 1.5], "speedups_of_path": [1.1, 1.2, 1.3]}
    cold = {"first_token_s": [1.0, 3.0, 2.0], "all_loaded_s": [4.0]}
    found, notes = figures(SERVERS, short, {"64": {"p99_added_ms": 3.0}}, cold)
    assert found == {
        "goodput_routed_vs_one_at_a_time": 6.0,
        "goodput_routed_vs_best_peer": 4.5,
        "goodput_routed_vs_llama_cpp_server": 9.0,
        "goodput_full_vs_best_peer": 2.0,
        "concurrency_vs_one_at_a_time": 10.0,
        "concurrency_vs_full": 2.0,
        "success_rate": 1.0,
        "short_prompt_speedup": 1.5,
        "short_prompt_speedup_of_path": 1.2,
        "added_p99_ms_64": 3.0,
        "cold_start_first_token_s": 2.0,
        "cold_start_all_loaded_s": 4.0,
    }
    assert notes == ["the best peer that batches is openvino"]
    assert set(found) == set(MEANINGS)


def test_what_was_not_measured_is_no_figure_but_a_note() -> None:
    servers = {"routed": findings([8.0], []), "one-at-a-time": findings([0.0], [])}
    found, notes = figures(servers, None, None, None)
    assert set(found) == {"success_rate"}
    assert any(
        note.startswith("goodput_routed_vs_one_at_a_time: the second keeps the SLO at no load") for note in notes
    )
    assert any(note.startswith("concurrency_vs_full: one of the two") for note in notes)


class Blocks:
    """A generator whose blocks take what the arm costs, one of them without any figure."""

    def __init__(self) -> None:
        self.arms: list[str] = []

    def measure(self, server: Any, *, body: dict[str, Any], **_: Any) -> Point:
        preferences = body["fenhe"]
        assert preferences["cache"] is False
        cost = {"full": 300.0}.get(preferences.get("quality"), {"full": 240.0}.get(preferences.get("path"), 200.0))
        self.arms.append(str(cost))
        return point(figures={} if len(self.arms) == 2 else {"median_e2el_ms": cost})


def test_short_prompts_take_turns_and_incomplete_blocks_do_not_count() -> None:
    blocks: Any = Blocks()
    found = short_prompts(blocks, cast(RunningServer, None), replace(QUICK, short_blocks=3))
    assert blocks.arms == ["200.0", "240.0", "300.0", "300.0", "240.0", "200.0", "200.0", "240.0", "300.0"]
    assert found["speedups"] == [1.5, 1.5]
    assert found["speedups_of_path"] == [1.2, 1.2]


def test_table_and_verdicts_can_be_read() -> None:
    lines = list(table(SERVERS))
    assert any("9.00 (8.00..10.00)" in line for line in lines)
    assert any("absent: not installed" in line for line in lines)
    told = list(verdicts({"added_p99_ms_64": 6.0, "goodput_full_vs_best_peer": 1.6, "cold_start_all_loaded_s": 2.0}))
    assert told[0].endswith("aim at most 5: missed")
    assert told[1].endswith("aim at least 1.5: reached")
    assert "aim" not in told[2]


def test_page_holds_its_pictures_itself(tmp_path: Path) -> None:
    servers = dict(SERVERS)
    servers["routed"].ablation = [point(concurrency=16)]
    found, notes = figures(servers, None, None, None)
    document = {"machine": {"cpu": "a <b>"}, "versions": {}, "figures": found, "notes": notes, "formulas": FORMULAS}
    write_page(tmp_path / "page.html", document, servers)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 6  # no end-to-end quantiles were given
    assert "a &lt;b&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_markdown_has_figures_servers_and_where_it_was_taken() -> None:
    servers = dict(SERVERS)
    servers["routed"].ablation = [point(concurrency=16)]
    found, notes = figures(servers, None, None, None)
    machine = {"cpu": "a cpu", "cores": 2, "load_1min": 0.1, "date": "today"}
    document = {
        "machine": machine,
        "versions": {"python": "3"},
        "figures": found,
        "notes": notes,
        "command": ["compare"],
    }
    told = markdown(document, servers)
    assert "`fenhe loadtest compare`; a cpu, 2 cores" in told
    assert "| `goodput_routed_vs_best_peer` | 3 | **4.5** |" in told
    assert "| `routed` | 9.00 (8.00 .. 10.00) | 20 | 100 | 500 |" in told
    assert "| `vllm` | absent: not installed |" in told
    assert "- the best peer that batches is openvino" in told


def test_pictures_are_files_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", SERVERS)
    names = {file.name for file in (tmp_path / "pictures").iterdir()}
    assert {"throughput-against-concurrency.svg", "goodput-against-the-offered-rate.svg"} <= names


def test_every_second_round_goes_the_other_way() -> None:
    assert [list(in_turn("abc", number)) for number in range(3)] == [list("abc"), list("cba"), list("abc")]
