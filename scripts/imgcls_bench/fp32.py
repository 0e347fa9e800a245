"""The network in single precision, as people have it before they prepare it for their CPU."""

from __future__ import annotations

import hashlib
import subprocess

from .common import ROOT, say
from .peers import NotInstalledError

FOLDER = ROOT / ".cache" / "bench" / "efficientnet-lite0-fp32"
MODEL = FOLDER / "efficientnet-lite0-fp32.onnx"


def export() -> None:
    """Exports it once, and again when the scripts that make it change."""
    scripts = ROOT / "scripts"
    sources = [scripts / "export_model.py", *sorted((scripts / "imgcls_models").glob("*.py"))]
    wanted = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    # Written last, so that an interrupted export is repeated.
    stamp = FOLDER / "made-by.stamp"
    if MODEL.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    say(f"exporting the network in single precision into {FOLDER.relative_to(ROOT)} (once)")
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [scripts / "export-model", "lite0", "--variants", "fp32", "--out", FOLDER]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise NotInstalledError(f"the network in single precision could not be exported: {last}")
    stamp.write_text(wanted, encoding="utf-8")
