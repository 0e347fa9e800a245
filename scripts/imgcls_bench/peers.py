"""The Python servers to compare with: how each is installed and started. Their code is in scripts/bench_peers/."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .common import ROOT, say

APPS = ROOT / "scripts" / "bench_peers"
ENVIRONMENTS = ROOT / ".cache" / "bench" / "envs"
# Preferred because it is built with profile-guided optimisation and finds python3-torch.
SYSTEM_PYTHON = Path("/usr/bin/python3")


class NotInstalledError(Exception):
    """A peer could not be installed; the message is the reason."""


@dataclass(frozen=True)
class Peer:
    """A Python server with two workers. `command` takes the bin folder of its virtual environment and the port."""

    name: str
    title: str
    command: Callable[[Path, int], list]

    @property
    def requirements(self) -> Path:
        """The requirements file, with every version pinned."""
        return APPS / f"{self.name}_requirements.txt"

    @property
    def bin(self) -> Path:
        """The bin folder of its virtual environment."""
        return ENVIRONMENTS / self.name / "bin"

    def install(self) -> None:
        """Creates the virtual environment, and recreates it when the requirements change."""
        folder = ENVIRONMENTS / self.name
        required = self.requirements.read_bytes()
        # A copy of the requirements, written last, so that an interrupted installation is repeated.
        stamp = folder / "requirements.stamp"
        if stamp.exists() and stamp.read_bytes() == required:
            return
        say(f"installing {self.title} into .cache/bench/envs/{self.name} (once)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([python(), "-m", "venv", "--clear", folder], "no venv (Debian: apt-get install python3-venv)")
        pip = [self.bin / "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        _run([*pip, "--requirement", self.requirements], f"pip could not install {self.requirements.name}")
        stamp.write_bytes(required)


def python() -> str:
    """The interpreter of the virtual environments."""
    return str(SYSTEM_PYTHON) if SYSTEM_PYTHON.exists() else shutil.which("python3") or "python3"


def _run(command: list, failure: str) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise NotInstalledError(f"{failure}: {last}")


def environment(model: Path, labels: Path, home: Path) -> dict:
    """The environment of every peer: the files to serve, one thread in each library, and no telemetry."""
    return os.environ | {
        "IMGCLS_BENCH_MODEL": str(model),
        "IMGCLS_BENCH_LABELS": str(labels),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home / "bentoml"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),
    }


def _fastapi(bin_: Path, port: int) -> list:
    flags = ["--host", "127.0.0.1", "--port", port, "--workers", 2, "--no-access-log", "--log-level", "warning"]
    return [bin_ / "uvicorn", "fastapi_app:app", *flags]


def _flask(bin_: Path, port: int) -> list:
    return [bin_ / "gunicorn", "flask_app:app", "--bind", f"127.0.0.1:{port}", "--workers", 2, "--log-level", "warning"]


def _bentoml(bin_: Path, port: int) -> list:
    return [bin_ / "bentoml", "serve", "bentoml_app:Service", "--host", "127.0.0.1", "--port", port, "--quiet"]


PEERS = (
    Peer("fastapi", "FastAPI, uvicorn", _fastapi),
    Peer("flask", "Flask, gunicorn", _flask),
    Peer("litserve", "LitServe", lambda bin_, port: [bin_ / "python", "litserve_app.py", port]),
    Peer("ray", "Ray Serve", lambda bin_, port: [bin_ / "python", "ray_app.py", port]),
    Peer("bentoml", "BentoML", _bentoml),
)
