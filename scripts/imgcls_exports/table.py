"""The table of checked exports, and its place in docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .compare import Comparison

HEADING = "## Checked exports"
COLUMNS = ("export", "added with", "images", "largest difference", "mean difference", "same best class", "result")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    shape: str
    options: str
    outcome: Comparison | str
    """The differences, or why there are none."""
    resizes_faster: bool = False
    """The package asks for the faster resize, so its scores are shown and not required to be equal."""

    @property
    def passed(self) -> bool:
        """Reports whether nothing is wrong."""
        return not isinstance(self.outcome, str) and (self.resizes_faster or self.outcome.passed)

    def cells(self) -> tuple[str, ...]:
        """The texts of the columns."""
        if isinstance(self.outcome, str):
            return (self.shape, self.options, "–", "–", "–", "–", f"failed: {self.outcome}")
        found = self.outcome
        share = f"{found.same_top1} of {found.images}"
        result = "equal" if found.passed else "faster resize" if self.resizes_faster else "**differs**"
        return (
            self.shape,
            self.options,
            str(found.images),
            f"{found.largest:.4f}",
            f"{found.mean:.4f}",
            share,
            result,
        )


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *[row.cells() for row in rows]]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write(path: Path, table: str) -> None:
    """Replaces the table below the heading in a page, and keeps the text around it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = [index for index, line in enumerate(lines) if line.rstrip() == HEADING]
    if not starts:
        raise ValueError(f"{path} has no line {HEADING!r}")
    first = next((at for at in range(starts[0] + 1, len(lines)) if lines[at][:1] in {"|", "#"}), len(lines))
    # Without a table there, nothing is replaced.
    last = next((at for at in range(first, len(lines)) if not lines[at].startswith("|")), len(lines))
    before = "".join(lines[:first]).rstrip("\n") + "\n\n"
    after = "".join(lines[last:]).lstrip("\n")
    path.write_text(before + table + (f"\n{after}" if after else ""), encoding="utf-8")
