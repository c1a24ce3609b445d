"""Every formula of the bench, once: from records to named figures.

A figure is computed per round (the median of the round's repeats); what is reported is the median of the rounds.
A ratio is taken within each round, where both sides met the same noise.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.engines.cases import REFERENCE_PRECISION
from bench.engines.rounds import PEER_NAMES, Record
from bench.protocol import Generated, Occupied, Scored, Stalled, Started, StepTimes
from bench.rounds import medians

FENHE = "fenhe"
SERVE = "fenhe serve"
LLAMA_CPP = "llama.cpp"

FORMULAS = {
    "decode_1, paths_1": "(tokens - 1) / (last token - first token), full depth or the named path",
    "decode_8, decode_32, paths_32, http_32": "tokens of all sequences / (last token of all - submission), prompts "
    "included",
    "prefill_512": "prompt tokens / (first token - submission), a prompt that no run has used before",
    "*_vs_best_peer, *_vs_llama_cpp": "our rate / theirs in the same round, median of rounds",
    "mixed_step_vs_modules": "mixed step / (shallowest path at all rows + for every next module: step of the path that "
    "ends with it - step of the path before, both at the module's rows)",
    "http_32_vs_in_process": "http_32 over HTTP / http_32 in process, client included, same round",
    "server_us_per_token": "1e6 * (1 / HTTP rate - 1 / in-process rate)",
    "cross_entropy": "summed -log p of every token but a text's first / their number, teacher-forced",
    "ce_vs_fp32": "cross_entropy of what is served (the worse of 32 rows and 1 row) / fp32 graphs on the same texts",
    "stall": "largest gap between two tokens of one stream: before the prompt arrives, and until its first token",
    "first_token_s, all_loaded_s": "since the server's process was started; first token on the first module's path",
    "rss_mib": "largest resident memory of the server's process while 32 sequences grow to 1,024 tokens",
}

PerRound = dict[int, float]
RATE_CASES = ("decode_1", "decode_8", "decode_32", "prefill_512")


@dataclass(slots=True)
class Figures:
    """Named figures, each with its value per round."""

    rounds: dict[str, PerRound] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        return medians({name: list(values.values()) for name, values in self.rounds.items()})

    def add(self, name: str, values: Mapping[int, float]) -> None:
        if values:
            self.rounds[name] = dict(values)

    def add_ratio(self, name: str, above: Mapping[int, float], below: Mapping[int, float]) -> None:
        self.add(name, {number: above[number] / below[number] for number in above if number in below})


def compute_figures(records: Sequence[Record]) -> Figures:
    figures = Figures()
    _add_engine_rates(figures, records)
    _add_path_rates(figures, records)
    _add_http(figures, records)
    _add_mixed_step(figures, records)
    _add_stall(figures, records)
    _add_server(figures, records)
    _add_cross_entropy(figures, records)
    return figures


def decode_rate(run: Generated) -> float:
    """Tokens per second of one stream after its first token."""
    return (run.num_tokens - 1) / (run.total_s - run.first_s)


def job_rate(run: Generated) -> float:
    """Tokens per second of all sequences together, their prompts included."""
    return run.num_tokens / run.total_s


def prefill_rate(run: Generated) -> float:
    return run.num_prompt_tokens / run.first_s


RATES: dict[str, Callable[[Generated], float]] = {
    "decode_1": decode_rate,
    "paths_1": decode_rate,
    "decode_8": job_rate,
    "decode_32": job_rate,
    "paths_32": job_rate,
    "http_32": job_rate,
    "prefill_512": prefill_rate,
}


def rate_name(case: str, subject: str) -> str:
    return f"{case}_tokens_per_s.{subject}"


def per_round(values: Iterable[tuple[int, float]]) -> PerRound:
    """The median of each round's values."""
    grouped: dict[int, list[float]] = defaultdict(list)
    for number, value in values:
        grouped[number].append(value)
    return {number: statistics.median(each) for number, each in sorted(grouped.items())}


def rates(records: Sequence[Record], case: str, subject: str, label: str = "") -> PerRound:
    return per_round(
        (record.number, RATES[case](record.answer))
        for record in records
        if (record.case, record.subject, record.label) == (case, subject, label)
        and isinstance(record.answer, Generated)
    )


def mixed_over_modules(times: StepTimes) -> float:
    """How much a mixed step costs over its modules alone. 1.0 is free mixing."""
    first, num_paths = times.paths[0], len(times.paths)
    alone = times.uniform_s[f"{first}:{times.rows_per_path * num_paths}"]
    for depth in range(1, num_paths):
        num_rows = times.rows_per_path * (num_paths - depth)
        deeper, shallower = (f"{times.paths[depth - k]}:{num_rows}" for k in (0, 1))
        alone += times.uniform_s[deeper] - times.uniform_s[shallower]
    return times.mixed_s / alone


def nats_per_token(scored: Scored, num_texts: int | None = None) -> float:
    """Over the first `num_texts` texts, or all."""
    return sum(scored.nats[:num_texts]) / sum(scored.num_tokens[:num_texts])


def _add_engine_rates(figures: Figures, records: Sequence[Record]) -> None:
    for case in RATE_CASES:
        ours = rates(records, case, FENHE)
        peers = {peer: rates(records, case, peer) for peer in PEER_NAMES}
        for subject, values in {FENHE: ours, **peers}.items():
            figures.add(rate_name(case, subject), values)
        best = {
            number: max(values[number] for values in peers.values() if number in values)
            for number in ours
            if any(number in values for values in peers.values())
        }
        figures.add_ratio(f"{case}_vs_best_peer", ours, best)
        for peer, values in peers.items():
            figures.add_ratio(f"{case}_vs_{peer.replace('.', '_')}", ours, values)


def _add_path_rates(figures: Figures, records: Sequence[Record]) -> None:
    for case in ("paths_1", "paths_32"):
        for path in dict.fromkeys(record.label for record in records if record.case == case):
            figures.add(rate_name(case, path), rates(records, case, FENHE, path))


def _add_http(figures: Figures, records: Sequence[Record]) -> None:
    served, inside = rates(records, "http_32", SERVE), rates(records, "http_32", FENHE)
    figures.add(rate_name("http_32", SERVE), served)
    figures.add(rate_name("http_32", FENHE), inside)
    figures.add_ratio("http_32_vs_in_process", served, inside)
    cost_us = {number: 1e6 * (1 / served[number] - 1 / inside[number]) for number in served if number in inside}
    figures.add("server_us_per_token", cost_us)


def _add_mixed_step(figures: Figures, records: Sequence[Record]) -> None:
    steps = [(record.number, record.answer) for record in records if isinstance(record.answer, StepTimes)]
    figures.add("mixed_step_ms", per_round((number, 1e3 * times.mixed_s) for number, times in steps))
    figures.add("mixed_step_vs_modules", per_round((n, mixed_over_modules(times)) for n, times in steps))


def _add_stall(figures: Figures, records: Sequence[Record]) -> None:
    runs = [(record.number, record.answer) for record in records if isinstance(record.answer, Stalled)]
    figures.add("worst_gap_quiet_ms", per_round((n, 1e3 * max(run.quiet_gaps_s)) for n, run in runs))
    figures.add("worst_gap_during_prompt_ms", per_round((n, 1e3 * max(run.loaded_gaps_s)) for n, run in runs))
    figures.add("prompt_2000_first_token_s", per_round((n, run.intruder_first_s) for n, run in runs))


def _add_server(figures: Figures, records: Sequence[Record]) -> None:
    starts = [(record.number, record.answer) for record in records if isinstance(record.answer, Started)]
    figures.add("listening_s", per_round((n, run.listening_s) for n, run in starts))
    figures.add("first_token_s", per_round((n, run.first_token_s) for n, run in starts))
    figures.add("all_loaded_s", per_round((n, run.all_loaded_s) for n, run in starts))
    figures.add("first_token_vs_all_loaded", per_round((n, run.first_token_s / run.all_loaded_s) for n, run in starts))
    fills = [(record.number, record.answer) for record in records if isinstance(record.answer, Occupied)]
    figures.add("rss_mib", per_round((n, run.rss_mib) for n, run in fills))
    figures.add("rss_peak_mib", per_round((n, run.peak_rss_mib) for n, run in fills))
    figures.add("rss_idle_mib", per_round((n, run.idle_rss_mib) for n, run in fills))


def _add_cross_entropy(figures: Figures, records: Sequence[Record]) -> None:
    scored = {(record.subject, record.label): record.answer for record in records if isinstance(record.answer, Scored)}
    reference = scored.get((FENHE, REFERENCE_PRECISION))
    for (subject, label), answer in scored.items():
        name = f"{subject}, {label}" if label else subject
        figures.add(f"cross_entropy.{name}", {0: nats_per_token(answer)})
        if reference is not None and label != REFERENCE_PRECISION:
            same_texts = nats_per_token(reference, len(answer.nats))
            figures.add(f"ce_vs_fp32.{name}", {0: nats_per_token(answer) / same_texts})
    served = [f"ce_vs_fp32.{FENHE}, served", f"ce_vs_fp32.{FENHE}, served, 1 row"]
    found = [figures.rounds[name][0] for name in served if name in figures.rounds]
    if found:
        figures.add("ce_vs_fp32", {0: max(found)})
