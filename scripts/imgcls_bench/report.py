"""Tables in Markdown, which are also readable in a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from .summary import COMPARED_CLIENTS, Figure, Summary

SET_TITLES = {"64x64": "64 × 64", "500x375": "500 × 375", "1080p": "1920 × 1080", "12mp": "4000 × 3000"}
NOT_MEASURED = "–"
PERCENTILES = ("p50_ms", "p99_ms", "p99_9_ms")


def tables(summary: Summary, titles: dict[str, str], sets: list[str], figures: list[Figure]) -> str:
    """For each image set the table of the systems, then the table of targets."""
    parts = []
    for set_ in sets:
        parts += [f"### {SET_TITLES.get(set_, set_)}", closed_table(summary, titles, set_)]
        if any(it["kind"] == "open" and it["set"] == set_ for it in summary.measurements):
            parts.append(open_table(summary, titles, set_))
    if figures:
        parts += ["### Targets", figure_table(figures)]
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Cells:
    """The table cells of one system with one image set."""

    summary: Summary
    system: str
    set_: str

    def value(self, form: str, key: str, kind: str, **labels: object) -> str:
        """A median as text."""
        if self.summary.failed(self.system, self.set_, kind, **labels):
            return "failed"
        return _shown(form, self.summary.value(key, self.system, self.set_, kind, **labels))

    def main(self, form: str, key: str) -> str:
        """A median of the main measurement of the system."""
        kind, labels = self.summary.main_kind(self.system)
        return self.value(form, key, kind, **labels)

    def latency(self, kind: str, **labels: object) -> str:
        """Three percentiles as text."""
        return " / ".join(self.value("{:.1f}", key, kind, **labels) for key in PERCENTILES)


def closed_table(summary: Summary, titles: dict[str, str], set_: str) -> str:
    """Rates by number of clients, latency, CPU time and memory."""
    here = [it for it in summary.measurements if it["set"] == set_]
    clients = sorted({it["clients"] for it in here if "clients" in it})
    head = ["", *(f"{number} client{'s' * (number > 1)}, images/s" for number in clients)]
    head += [f"p50 / p99 / p99.9 at {COMPARED_CLIENTS}, ms", "CPU per image, ms", "efficiency"]
    head += ["memory, MB", "first answer, s"]
    measured = {it["system"] for it in here}
    rows = [
        _row(Cells(summary, system, set_), title, clients) for system, title in titles.items() if system in measured
    ]
    return _table(head, rows)


def _row(cells: Cells, title: str, clients: list[int]) -> list[str]:
    summary, system, set_ = cells.summary, cells.system, cells.set_
    if summary.main_kind(system)[0] == "closed":
        rates = [cells.value("{:.0f}", "images_per_second", "closed", clients=number) for number in clients]
        latency = cells.latency("closed", clients=COMPARED_CLIENTS)
        first = cells.value("{:.2f}", "first_answer_seconds", "start")
    else:
        # The system has no clients, so its only rate is shown in the last of their columns.
        rates = ["" for _ in clients[1:]] + [cells.main("{:.3g}", "images_per_second")]
        latency = first = ""
    efficiency = summary.efficiency(system, set_)
    memory = _shown("{:.0f}", max_memory(summary, system, set_))
    return [
        title,
        *rates,
        latency,
        cells.main("{:.2f}", "cpu_ms_per_image"),
        _shown("{:.2g}", efficiency),
        memory,
        first,
    ]


def max_memory(summary: Summary, system: str, set_: str) -> float | None:
    """The memory in the closed loop with most clients, or in the only measurement of the system."""
    kind, labels = summary.main_kind(system)
    if kind == "closed":
        here = [it for it in summary.measurements if (it["system"], it["set"]) == (system, set_)]
        labels = {"clients": max((it["clients"] for it in here if "clients" in it), default=None)}
    return summary.value("memory_mb", system, set_, kind, **labels)


def open_table(summary: Summary, titles: dict[str, str], set_: str) -> str:
    """Latency by load in open loops."""
    opened = [it for it in summary.measurements if it["set"] == set_ and it["kind"] == "open"]
    shares = sorted({it["share"] for it in opened})
    measured = {it["system"] for it in opened}
    rows = [
        [title, *(Cells(summary, system, set_).latency("open", share=share) for share in shares)]
        for system, title in titles.items()
        if system in measured
    ]
    head = ["Poisson arrivals; p50 / p99 / p99.9 in ms at", *(f"{share:.0%} of its capacity" for share in shares)]
    return _table(head, rows)


def figure_table(figures: list[Figure]) -> str:
    """The targets and the measured values."""
    rows = [
        [
            it.name,
            f"{it.value:.2f}" if it.value < 20 else f"{it.value:.0f}",
            it.asked,
            "yes" if it.reached else "**no**",
        ]
        for it in figures
    ]
    return _table(["", "measured", "target", "reached"], rows)


def machine_line(machine: dict) -> str:
    """The machine in one line, for the docs."""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}"


def _shown(form: str, value: float | None) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
