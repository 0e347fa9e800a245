"""The models directory: `<directory>/<name>/<version>/model.toml`, and `<name>/current`, whose first line is in use."""

from __future__ import annotations

import os
from pathlib import Path


def default_directory() -> Path:
    """Where `imgcls model add` puts models unless it is told another place."""
    if named := os.environ.get("IMGCLS_MODELS_DIR"):
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "imgcls" / "models"


def folder(directory: Path, reference: str) -> Path:
    """The folder of `NAME` (its version in use) or of `NAME@VERSION`. Raises `FileNotFoundError` if there is none."""
    name, _, version = reference.partition("@")
    if not version:
        try:
            version = (directory / name / "current").read_text(encoding="utf-8").split()[0]
        except (OSError, IndexError):
            raise FileNotFoundError(f"there is no model {name!r} in {directory}; see `imgcls model list`") from None
    found = directory / name / version
    if not (found / "model.toml").is_file():
        raise FileNotFoundError(f"there is no {name}@{version} in {directory}; see `imgcls model list`")
    return found
