"""Gathers records where the results are made: in a run of one process there, with workers in the master."""

from dataclasses import dataclass, field
from typing import Any

from loadtest.generator.results import document
from loadtest.measure.figures import ttft_s
from loadtest.measure.record import Record
from loadtest.traffic.workload import Workload


@dataclass(kw_only=True)
class Collector:
    """`cpu_shares` has one entry per worker that has ended."""

    workload: Workload
    seed: int
    url: str
    records: list[Record] = field(default_factory=list)
    cpu_shares: dict[str, float] = field(default_factory=dict)
    _num_told: int = 0

    def note(self, record: Record) -> None:
        self.records.append(record)

    def document(self) -> dict[str, Any]:
        busiest = max(self.cpu_shares.values(), default=0.0)
        return document(self.records, self.workload, url=self.url, seed=self.seed, generator_cpu_share=busiest)

    def progress(self, now_s: float) -> str:
        """A line for a person: where the run is, and what was seen since the last line."""
        schedule = self.workload.schedule
        fresh, self._num_told = self.records[self._num_told :], len(self.records)
        first_s = sorted(found for record in fresh if (found := ttft_s(record)) is not None)
        phase = "warm-up" if now_s < schedule.warm_up_s else "measuring"
        phase = "draining" if now_s > schedule.warm_up_s + schedule.duration_s else phase
        told = [f"{now_s:5.0f} s of {schedule.warm_up_s + schedule.duration_s:.0f} ({phase})"]
        told.append(
            f"{len(self.records)} requests, {sum(record.failure is not None for record in self.records)} failed"
        )
        if first_s:
            told.append(f"TTFT now p50 {first_s[len(first_s) // 2] * 1000:.0f} ms, worst {first_s[-1] * 1000:.0f} ms")
        return "; ".join(told)
