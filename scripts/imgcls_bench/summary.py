"""Medians of the measurements of several rounds, and the ratios that have targets. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

Measurement = dict
DEFAULT_SET = "500x375"
COMPARED_CLIENTS = 8
# The labels that identify a measurement.
LABELS = ("system", "set", "kind", "clients", "share")


class Summary:
    """Medians over the rounds. A measurement that failed in any round counts as failed."""

    def __init__(self, measurements: list[Measurement]) -> None:
        self.measurements = measurements
        self.groups: dict[tuple, list[Measurement]] = {}
        for measurement in measurements:
            self.groups.setdefault(tuple(measurement.get(label) for label in LABELS), []).append(measurement)

    def value(self, key: str, system: str, set_: str, kind: str, **labels: object) -> float | None:
        """The median; None if it was not measured or failed."""
        by_round = self.rounds(key, system, set_, kind, **labels)
        return statistics.median(by_round.values()) if by_round else None

    def rounds(self, key: str, system: str, set_: str, kind: str, **labels: object) -> dict[int, float]:
        """The values by round."""
        group = self.groups.get((system, set_, kind, labels.get("clients"), labels.get("share")), [])
        if any("failed" in it for it in group):
            return {}
        return {it["round"]: it[key] for it in group if it.get(key) is not None}

    def failed(self, system: str, set_: str, kind: str, **labels: object) -> bool:
        """Returns true if the measurement was tried and failed."""
        group = self.groups.get((system, set_, kind, labels.get("clients"), labels.get("share")), [])
        return any("failed" in it for it in group)

    def ratio(self, above: dict[int, float], below: dict[int, float]) -> float | None:
        """The median of the ratios of each round, so that drift between rounds cancels out."""
        ratios = [above[number] / below[number] for number in above.keys() & below.keys()]
        return statistics.median(ratios) if ratios else None

    def main_kind(self, system: str) -> tuple[str, dict]:
        """The measurement that represents speed and cost of a system."""
        special = {"ceiling": "ceiling", "worker": "queue", "fresh-process": "fresh"}
        return (special[system], {}) if system in special else ("closed", {"clients": COMPARED_CLIENTS})

    def main(self, key: str, system: str, set_: str) -> dict[int, float]:
        """The values of the main measurement by round."""
        kind, labels = self.main_kind(system)
        return self.rounds(key, system, set_, kind, **labels)

    def medians(self) -> list[dict]:
        """The medians of every group with its labels. A failed group has only labels and `failed`."""
        found = []
        for key, group in self.groups.items():
            labels = {label: value for label, value in zip(LABELS, key, strict=True) if value is not None}
            if any("failed" in it for it in group):
                found.append({**labels, "failed": True})
                continue
            numbers = {name for it in group for name, value in it.items() if isinstance(value, (int, float))}
            values = {name: [it[name] for it in group if it.get(name) is not None] for name in sorted(numbers)}
            kept = {name: statistics.median(of) for name, of in values.items() if name not in (*LABELS, "round")}
            found.append({**labels, "rounds": len(group), **kept})
        return found

    def efficiency(self, system: str, set_: str) -> float | None:
        """CPU time per image of the ceiling divided by that of the system."""
        key = "cpu_ms_per_image"
        return self.ratio(self.main(key, "ceiling", set_), self.main(key, system, set_))

    def failures(self) -> list[str]:
        """One line for each failed measurement."""
        lines = []
        for it in self.measurements:
            if "failed" in it:
                more = [str(it[label]) for label in ("clients", "share") if label in it]
                what = " ".join([it["system"], it["set"], it["kind"], *more])
                lines.append(f"{what}, round {it['round']}: {it['failed']}")
        return lines

    def most_disturbed(self) -> float:
        """The largest share of the machine that other processes used during a measurement."""
        return max((it.get("others_cpu_share", 0.0) for it in self.measurements), default=0.0)


@dataclass(frozen=True)
class Figure:
    """A ratio or size with its target."""

    name: str
    value: float
    asked: str
    reached: bool


def figures(summary: Summary, peers: list[str], set_: str = DEFAULT_SET) -> list[Figure]:
    """All targets that these measurements cover."""
    found: list[Figure] = []

    def add(name: str, value: float | None, target: str, holds: Callable[[float], bool]) -> None:
        if value is not None:
            found.append(Figure(name, value, target, holds(value)))

    def compare(name: str, key: str, pair: tuple[str, str], target: str, holds: Callable[[float], bool]) -> None:
        above, below = (summary.main(key, system, set_) for system in pair)
        add(name, summary.ratio(above, below), target, holds)

    rate, cpu = "images_per_second", "cpu_ms_per_image"
    compare("worker, full queue / ceiling, images/s", rate, ("worker", "ceiling"), "≥ 0.90", lambda it: it >= 0.90)
    compare("up at 8 clients / ceiling, images/s", rate, ("up", "ceiling"), "≥ 0.82", lambda it: it >= 0.82)
    ups, ceilings = summary.main(cpu, "up", set_), summary.main(cpu, "ceiling", set_)
    overhead = [ups[number] - ceilings[number] for number in ups.keys() & ceilings.keys()]
    name = "CPU of the full path above the ceiling, ms per image"
    add(name, statistics.median(overhead) if overhead else None, "≤ 1.0", lambda it: it <= 1.0)
    rates = {peer: summary.value(rate, peer, set_, "closed", clients=COMPARED_CLIENTS) for peer in peers}
    measured = {peer: it for peer, it in rates.items() if it}
    if measured:
        best = max(measured, key=measured.__getitem__)
        compare(f"up / best Python peer ({best}), images/s", rate, ("up", best), "≥ 1.4", lambda it: it >= 1.4)
        compare(f"up / {best}, p99", "p99_ms", ("up", best), "≤ 0.7", lambda it: it <= 0.7)
        compare(f"up / {best}, memory", "memory_mb", ("up", best), "≤ 0.5", lambda it: it <= 0.5)
    compare(
        "a process per image (legacy) / up, CPU per image", cpu, ("fresh-process", "up"), "≥ 150", lambda it: it >= 150
    )
    for share in (0.5, 0.7):
        ours = summary.rounds("p99_ms", "up", set_, "open", share=share)
        others = {peer: summary.rounds("p99_ms", peer, set_, "open", share=share) for peer in peers}
        ratios = {peer: it for peer in peers if (it := summary.ratio(ours, others[peer])) is not None}
        if ratios:
            best = max(ratios, key=ratios.__getitem__)
            name = f"up / peer with the best p99 ({best}), p99 at {share:.0%} of the capacity of each"
            add(name, ratios[best], "≤ 1.0", lambda it: it <= 1.0)
    idle = summary.rounds("p50_ms", "up", set_, "closed", clients=1)
    for share, most in ((0.5, 3), (0.7, 5)):
        loaded = summary.rounds("p99_ms", "up", set_, "open", share=share)
        name = f"up, open loop: p99 at {share:.0%} of the capacity / p50 when idle"
        add(name, summary.ratio(loaded, idle), f"≤ {most}", lambda it, most=most: it <= most)
    ready = summary.value("exec_to_ready_ms", "worker", set_, "ready")
    add("worker, exec to ready, ms", ready, "≤ 300", lambda it: it <= 300)
    memory = summary.value("memory_mb", "up", "12mp", "closed", clients=32)
    add("memory of web and 2 workers, 32 clients, 12 MP images, MB", memory, "≤ 450", lambda it: it <= 450)
    return found
