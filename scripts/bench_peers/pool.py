"""Classifies the files of a folder with a pool of two processes and writes a CSV file, as people do without a server.

python pool.py FOLDER FILE.csv
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
from pathlib import Path

from classifier import Classifier

PROCESSES = 2
# Paths that a process takes at a time.
CHUNK = 16
_classifier = None


def start() -> None:
    """Opens the session of a process."""
    global _classifier  # noqa: PLW0603
    _classifier = Classifier()


def classify(path: str) -> tuple[str, str, float]:
    """The best class of a file."""
    best = _classifier(Path(path).read_bytes())["predictions"][0]
    return path, best["label"], best["score"]


def main() -> None:
    """Classifies every JPEG of a folder."""
    folder, output = map(Path, sys.argv[1:])
    paths = sorted(map(str, folder.glob("*.jpg")))
    with multiprocessing.Pool(PROCESSES, start) as pool, output.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "score"))
        rows.writerows(pool.imap(classify, paths, CHUNK))


if __name__ == "__main__":
    main()
