"""The bench's formulas on made-up answers whose figures were worked out by hand."""

import pytest

from bench.engines.cases import CASES
from bench.engines.figures import FORMULAS, compute_figures, mixed_over_modules
from bench.engines.report import FIGURES_OF_CASE, make_document, render_table
from bench.engines.rounds import Record
from bench.protocol import Answer, Generated, Occupied, Scored, Stalled, Started, StepTimes


def record(case: str, subject: str, number: int, answer: Answer, label: str = "") -> Record:
    return Record(case=case, subject=subject, number=number, answer=answer, label=label)


def generated(*, tokens: int, first_s: float, total_s: float, prompt: int = 24) -> Generated:
    return Generated(num_prompt_tokens=prompt, num_tokens=tokens, first_s=first_s, total_s=total_s)


def test_decode_rate_leaves_the_first_token_out() -> None:
    runs = [record("decode_1", "fenhe", 0, generated(tokens=101, first_s=1.0, total_s=1.5))]
    assert compute_figures(runs).medians == {"decode_1_tokens_per_s.fenhe": 200.0}


def test_job_rate_counts_the_prompts_time() -> None:
    runs = [record("decode_32", "openvino", 0, generated(tokens=4096, first_s=1.0, total_s=4.0))]
    assert compute_figures(runs).medians == {"decode_32_tokens_per_s.openvino": 1024.0}


def test_prefill_rate_is_prompt_tokens_until_the_first_token() -> None:
    runs = [record("prefill_512", "llama.cpp", 0, generated(prompt=512, tokens=1, first_s=0.5, total_s=9.0))]
    assert compute_figures(runs).medians == {"prefill_512_tokens_per_s.llama.cpp": 1024.0}


def test_ratio_is_taken_per_round_against_the_best_peer_of_that_round() -> None:
    seconds = {"fenhe": (1.0, 4.0, 4.0), "llama.cpp": (3.0, 4.0, 20.0), "openvino": (2.0, 20.0, 12.0)}
    runs = [
        record("decode_32", subject, number, generated(tokens=100, first_s=0.1, total_s=total_s))
        for subject, totals in seconds.items()
        for number, total_s in enumerate(totals)
    ]
    figures = compute_figures(runs)
    assert list(figures.rounds["decode_32_vs_best_peer"].values()) == pytest.approx([2.0, 1.0, 3.0])
    assert figures.medians["decode_32_vs_best_peer"] == pytest.approx(2.0)
    assert list(figures.rounds["decode_32_vs_llama_cpp"].values()) == pytest.approx([3.0, 1.0, 5.0])


def test_repeats_of_a_round_are_reduced_to_their_median() -> None:
    runs = [record("decode_32", "fenhe", 0, generated(tokens=100, first_s=0.1, total_s=s)) for s in (1.0, 50.0, 2.0)]
    assert compute_figures(runs).rounds["decode_32_tokens_per_s.fenhe"] == {0: 50.0}


def test_ratio_needs_both_sides_in_the_same_round() -> None:
    runs = [
        record("decode_32", "fenhe", 0, generated(tokens=100, first_s=0.1, total_s=1.0)),
        record("decode_32", "llama.cpp", 1, generated(tokens=100, first_s=0.1, total_s=1.0)),
    ]
    assert not [name for name in compute_figures(runs).medians if "_vs_" in name]


def test_http_cost_is_the_difference_of_seconds_per_token() -> None:
    runs = [
        record("http_32", "fenhe serve", 0, generated(tokens=800, first_s=0.1, total_s=1.0)),
        record("http_32", "fenhe", 0, generated(tokens=1000, first_s=0.1, total_s=1.0)),
    ]
    medians = compute_figures(runs).medians
    assert medians["http_32_vs_in_process"] == pytest.approx(0.8)
    assert medians["server_us_per_token"] == pytest.approx(250.0)


def test_mixed_step_is_compared_with_each_module_at_its_own_rows() -> None:
    # knowledge at 30 rows with head 9 ms; reasoning at 20 rows 14 - 8 = 6 ms; adapter at 10 rows 12 - 10 = 2 ms
    uniform = {"k:30": 0.009, "k:20": 0.008, "r:20": 0.014, "r:10": 0.010, "full:10": 0.012}
    times = StepTimes(paths=("k", "r", "full"), rows_per_path=10, mixed_s=0.0187, uniform_s=uniform)
    assert mixed_over_modules(times) == pytest.approx(1.1)


def test_cross_entropy_ratio_compares_the_same_texts_and_reports_the_worse() -> None:
    runs = [
        record("cross_entropy", "fenhe", 0, Scored(nats=(20.0, 100.0), num_tokens=(10, 20)), "fp32"),
        record("cross_entropy", "fenhe", 0, Scored(nats=(20.0, 101.2), num_tokens=(10, 20)), "served"),
        record("cross_entropy", "fenhe", 0, Scored(nats=(21.0,), num_tokens=(10,)), "served, 1 row"),
        record("cross_entropy", "llama.cpp", 0, Scored(nats=(24.0, 108.0), num_tokens=(10, 20))),
    ]
    medians = compute_figures(runs).medians
    assert medians["cross_entropy.fenhe, fp32"] == pytest.approx(4.0)
    assert medians["ce_vs_fp32.fenhe, served"] == pytest.approx(1.01)
    assert medians["ce_vs_fp32.fenhe, served, 1 row"] == pytest.approx(1.05)
    assert medians["ce_vs_fp32"] == pytest.approx(1.05)
    assert medians["ce_vs_fp32.llama.cpp"] == pytest.approx(1.1)


def test_cross_entropy_without_a_reference_gives_no_ratio() -> None:
    runs = [record("cross_entropy", "llama.cpp", 0, Scored(nats=(24.0,), num_tokens=(10,)))]
    assert compute_figures(runs).medians == {"cross_entropy.llama.cpp": 2.4}


def test_stall_start_up_and_memory_become_their_figures() -> None:
    stalled = Stalled(quiet_gaps_s=(0.004, 0.006), loaded_gaps_s=(0.02, 0.05, 0.01), intruder_first_s=0.9)
    started = Started(listening_s=0.5, first_token_s=0.6, all_loaded_s=2.0)
    occupied = Occupied(rss_mib=1200.0, peak_rss_mib=1300.0, idle_rss_mib=400.0)
    medians = compute_figures(
        [
            record("stall", "fenhe", 0, stalled),
            record("start_up", "fenhe serve", 0, started),
            record("memory", "fenhe serve", 0, occupied),
        ]
    ).medians
    assert medians["worst_gap_quiet_ms"] == pytest.approx(6.0)
    assert medians["worst_gap_during_prompt_ms"] == pytest.approx(50.0)
    assert medians["first_token_vs_all_loaded"] == pytest.approx(0.3)
    assert (medians["first_token_s"], medians["all_loaded_s"], medians["rss_mib"]) == (0.6, 2.0, 1200.0)


def test_table_shows_cases_notes_and_every_formula() -> None:
    figures = compute_figures(
        [record("decode_32", "fenhe", n, generated(tokens=100, first_s=0.1, total_s=n + 1.0)) for n in (0, 1)]
    )
    table = render_table(figures, ["decode_32"], {"cpu": "abacus"}, {"fenhe": "1"}, ["vllm: absent: why"])
    assert "abacus" in table
    assert "vllm: absent: why" in table
    assert "(50 .. 100.0)" in table
    assert all(formula in table for formula in FORMULAS.values())


def test_every_case_has_a_place_in_the_table() -> None:
    assert set(FIGURES_OF_CASE) == set(CASES)


def test_document_has_medians_and_the_rounds_behind_them() -> None:
    figures = compute_figures(
        [record("decode_32", "fenhe", n, generated(tokens=100, first_s=0.1, total_s=n + 1.0)) for n in (0, 1, 3)]
    )
    document = make_document(figures, {"cpu": "abacus"}, {"fenhe": "1"}, [])
    assert document["machine"] == {"cpu": "abacus"}
    assert document["versions"] == {"fenhe": "1"}
    assert document["figures"] == {"decode_32_tokens_per_s.fenhe": 50.0}
    assert document["rounds"] == {"decode_32_tokens_per_s.fenhe": [100.0, 50.0, 25.0]}
