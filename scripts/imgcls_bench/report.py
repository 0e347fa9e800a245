"""Tables in Markdown, which also read well in a terminal."""

from __future__ import annotations

from .summary import COMPARED_CLIENTS, Figure, Summary

SET_TITLES = {"64x64": "64 × 64", "500x375": "500 × 375", "1080p": "1920 × 1080", "12mp": "4000 × 3000"}


def tables(summary: Summary, titles: dict[str, str], sets: list[str], figures: list[Figure]) -> str:
    """Everything: for each set its systems, then the figures that were asked for."""
    parts = []
    for set_ in sets:
        parts += [f"### {SET_TITLES.get(set_, set_)}", closed_table(summary, titles, set_)]
        if any(it["kind"] == "open" and it["set"] == set_ for it in summary.measurements):
            parts += [open_table(summary, titles, set_)]
    if figures:
        parts += ["### What was asked for", figure_table(figures)]
    return "\n\n".join(parts)


def closed_table(summary: Summary, titles: dict[str, str], set_: str) -> str:
    """Rates by clients, latency, cost."""
    measured = {it["system"] for it in summary.measurements if it["set"] == set_}
    clients = sorted({it["clients"] for it in summary.measurements if it["set"] == set_ and "clients" in it})
    head = ["", *(f"{number} client{'s' * (number > 1)}, images/s" for number in clients)]
    head += [f"p50 / p99 / p99.9 at {COMPARED_CLIENTS}, ms", "CPU an image, ms", "efficiency", "memory, MB"]
    head += ["first answer, s"]
    rows = []
    for system, title in titles.items():
        if system not in measured:
            continue
        kind, labels = summary.main_kind(system)
        cell = lambda key, form, kind=kind, labels=labels, system=system: _cell(summary, form, key, system, set_, kind, **labels)  # noqa: E501, E731
        if kind == "closed":
            rates = [_cell(summary, "{:.0f}", "images_per_second", system, set_, kind, clients=it) for it in clients]
        else:
            rates = ["" for _ in clients[1:]] + [cell("images_per_second", "{:.1f}" if kind == "fresh" else "{:.0f}")]
        latency = " / ".join(cell(key, "{:.1f}") for key in ("p50_ms", "p99_ms", "p99_9_ms")) if kind == "closed" else ""
        efficiency = summary.efficiency(system, set_)
        row = [title, *rates, latency, cell("cpu_ms_per_image", "{:.2f}")]
        row += ["–" if efficiency is None else f"{efficiency:.2f}" if efficiency > 0.05 else f"{efficiency:.4f}"]
        memory = max_memory(summary, system, set_)
        row += ["–" if memory is None else f"{memory:.0f}"]
        row += [_cell(summary, "{:.2f}", "first_answer_seconds", system, set_, "start") if kind == "closed" else ""]
        rows.append(row)
    return _table(head, rows)


def max_memory(summary: Summary, system: str, set_: str) -> float | None:
    """Of the closed loop with most clients, or of the one measurement that a system has."""
    kind, labels = summary.main_kind(system)
    if kind == "closed":
        clients = [it["clients"] for it in summary.measurements if (it["system"], it["set"]) == (system, set_) and "clients" in it]
        labels = {"clients": max(clients, default=None)}
    return summary.value("memory_mb", system, set_, kind, **labels)


def open_table(summary: Summary, titles: dict[str, str], set_: str) -> str:
    """Latency by load."""
    opened = [it for it in summary.measurements if it["set"] == set_ and it["kind"] == "open"]
    shares = sorted({it["share"] for it in opened})
    head = ["Poisson arrivals; p50 / p99 / p99.9 in ms at", *(f"{share:.0%} of its capacity" for share in shares)]
    rows = []
    for system, title in titles.items():
        if any(it["system"] == system for it in opened):
            cells = [
                " / ".join(
                    _cell(summary, "{:.1f}", key, system, set_, "open", share=share)
                    for key in ("p50_ms", "p99_ms", "p99_9_ms")
                )
                for share in shares
            ]
            rows.append([title, *cells])
    return _table(head, rows)


def figure_table(figures: list[Figure]) -> str:
    """What was asked for, and what came."""
    rows = [[it.name, f"{it.value:.2f}" if it.value < 20 else f"{it.value:.0f}", it.asked, "yes" if it.reached else "**no**"] for it in figures]
    return _table(["", "measured", "asked", "reached"], rows)


def machine_line(machine: dict) -> str:
    """One line for the docs."""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}"


def _cell(summary: Summary, form: str, key: str, system: str, set_: str, kind: str, **labels: object) -> str:
    if summary.failed(system, set_, kind, **labels):
        return "failed"
    value = summary.value(key, system, set_, kind, **labels)
    return "–" if value is None else form.format(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
