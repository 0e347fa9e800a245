"""The results as one SVG: bars for rate, CPU time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from .report import max_memory
from .summary import DEFAULT_SET, Summary

OURS = {"up", "worker"}
COLOURS = {"ours": "#0072b2", "ceiling": "#8c8c8c", "others": "#d55e00"}
WIDTH, LABEL_WIDTH, BAR_HEIGHT, ROW_HEIGHT, PANEL_HEAD = 870, 260, 16, 22, 40
FONT = 'font-family="sans-serif" font-size="12" fill="#3c3c3c"'


@dataclass(frozen=True)
class Bar:
    """One system in one panel."""

    system: str
    title: str
    value: float


def svg(summary: Summary, titles: dict[str, str], set_: str = DEFAULT_SET) -> str:
    """An SVG with three panels over the same systems. A system without a figure has no bar."""
    panels = [
        ("images a second, 8 clients (more is better)", _bars(summary, titles, set_, "images_per_second"), "{:.0f}"),
        ("CPU time an image, ms (less is better)", _cost(_bars(summary, titles, set_, "cpu_ms_per_image")), "{:.1f}"),
        ("memory of all processes, MB (less is better)", _memory(summary, titles, set_), "{:.0f}"),
    ]
    parts, top = [], 8
    for title, bars, form in panels:
        parts += _panel(title, bars, form, top)
        top += PANEL_HEAD + ROW_HEIGHT * len(bars)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 8}" {FONT}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _bars(summary: Summary, titles: dict[str, str], set_: str, key: str) -> list[Bar]:
    found = []
    for system, title in titles.items():
        kind, labels = summary.main_kind(system)
        value = summary.value(key, system, set_, kind, **labels)
        if value is not None:
            found.append(Bar(system, title, value))
    return found


def _cost(bars: list[Bar]) -> list[Bar]:
    """Leaves out the bar that is hundreds of times as long as the others, which would make them invisible."""
    return [bar for bar in bars if bar.system != "fresh-process"]


def _memory(summary: Summary, titles: dict[str, str], set_: str) -> list[Bar]:
    found = [(system, title, max_memory(summary, system, set_)) for system, title in titles.items()]
    return [Bar(system, title, value) for system, title, value in found if value is not None]


def _panel(title: str, bars: list[Bar], form: str, top: int) -> list[str]:
    parts = [f'<text x="12" y="{top + 22}" font-size="14">{escape(title)}</text>']
    longest = max((bar.value for bar in bars), default=1.0)
    for number, bar in enumerate(bars):
        y = top + PANEL_HEAD - 6 + number * ROW_HEIGHT
        width = bar.value / longest * (WIDTH - LABEL_WIDTH - 80)
        colour = COLOURS["ours" if bar.system in OURS else "ceiling" if bar.system == "ceiling" else "others"]
        parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{y + 12}" text-anchor="end">{escape(bar.title)}</text>')
        parts.append(f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>')
        parts.append(f'<text x="{LABEL_WIDTH + width + 6:.1f}" y="{y + 12}">{form.format(bar.value)}</text>')
    return parts
