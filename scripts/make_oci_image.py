#!/usr/bin/env python3
"""Write an image for containers as an OCI archive, without a daemon and without root.

    scripts/make_oci_image.py [--release DIR] --base DEBIAN --machine x86_64 --version 0.1.0 --out FILE

The image holds an unpacked release in /usr, and of Debian only what it runs on: the C and C++ libraries and the
certificates of public authorities. There is no shell. It runs as a user without rights and needs no writable root. The
same files give the same archive. Without --release it is an image that others can be built on.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LOADERS = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}
LIBRARIES = [
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libstdc++.so.6",
]
NOTICES = ["ca-certificates", "libc6", "libgcc-s1", "libstdc++6"]
USER = 65532
TEXTS = {
    "etc/passwd": f"root:x:0:0:root:/:/usr/sbin/nologin\nimgcls:x:{USER}:{USER}::/var/lib/imgcls:/usr/sbin/nologin\n",
    "etc/group": f"root:x:0:\nimgcls:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
ENVIRONMENT = [
    "PATH=/usr/bin",
    "IMGCLS_LISTEN=0.0.0.0:8080",
    "IMGCLS_DATA_DIR=/var/lib/imgcls",
    "IMGCLS_MODELS_DIR=/var/lib/imgcls/models",
    "IMGCLS_CACHE_DIR=/var/lib/imgcls/cache",
]


def main() -> None:
    """Writes the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, help="an unpacked release")
    parser.add_argument("--base", type=Path, required=True, help="the root of a Debian 12")
    parser.add_argument("--machine", choices=list(ARCHITECTURES), required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    layer = Layer(int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    add_base(layer, options.base, options.machine)
    for part in ["bin", "lib/imgcls", "share/imgcls", "share/doc/imgcls"] if options.release else []:
        folder = options.release / part
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            layer.file(f"usr/{part}/{path.relative_to(folder)}", path.read_bytes(), is_program=os.access(path, os.X_OK))
    write_archive(layer, options)


class Layer:
    """One layer of the image, as a tar file in memory."""

    def __init__(self, time: int) -> None:
        self.time = time
        self.folders: set[str] = set()
        self.bytes = io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self.bytes, mode="w", format=tarfile.PAX_FORMAT)

    def folder(self, name: str, mode: int = 0o755, owner: int = 0) -> None:
        """Add a directory with those above it."""
        if name in self.folders or name in {"", "."}:
            return
        self.folder(str(PurePosixPath(name).parent))
        self.folders.add(name)
        self.add(name, mode, owner, tarfile.DIRTYPE)

    def file(self, name: str, content: bytes, *, is_program: bool = False) -> None:
        """Add a file."""
        self.folder(str(PurePosixPath(name).parent))
        self.add(name, 0o755 if is_program else 0o644, 0, tarfile.REGTYPE, content)

    def add(self, name: str, mode: int, owner: int, kind: bytes, content: bytes = b"") -> None:
        """Add one entry."""
        entry = tarfile.TarInfo(name)
        entry.mode, entry.uid, entry.gid, entry.type = mode, owner, owner, kind
        entry.size, entry.mtime = len(content), self.time
        self.tar.addfile(entry, io.BytesIO(content))


def add_base(layer: Layer, base: Path, machine: str) -> None:
    """Add what the program needs of Debian, and the directories that it writes to."""
    libraries = f"usr/lib/{machine}-linux-gnu"
    # The usual path of the loader is an absolute link, which would lead out of the base.
    loader = base / libraries / Path(LOADERS[machine]).name
    layer.file(LOADERS[machine], loader.read_bytes(), is_program=True)
    for name in LIBRARIES:
        layer.file(f"{libraries}/{name}", (base / libraries / name).read_bytes(), is_program=True)
    certificates = "etc/ssl/certs/ca-certificates.crt"
    layer.file(certificates, (base / certificates).read_bytes())
    for package in NOTICES:
        # Some packages share the directory of another.
        notice = base / "usr/share/doc" / package / "copyright"
        if notice.exists():
            layer.file(f"usr/share/doc/{package}/copyright", notice.resolve().read_bytes())
    for name, text in TEXTS.items():
        layer.file(name, text.encode())
    layer.folder("tmp", 0o1777)
    layer.folder("var/lib/imgcls", 0o750, USER)


def write_archive(layer: Layer, options: argparse.Namespace) -> None:
    """Write the archive: the layer, the configuration, and what refers to them."""
    layer.tar.close()
    plain = layer.bytes.getvalue()
    packed = gzip.compress(plain, 6, mtime=0)
    created = datetime.fromtimestamp(layer.time, UTC).isoformat().replace("+00:00", "Z")
    labels = {
        "org.opencontainers.image.title": "imgcls",
        "org.opencontainers.image.version": options.version,
        "org.opencontainers.image.licenses": "Apache-2.0 AND MIT",
    }
    configuration = {
        "created": created,
        "architecture": ARCHITECTURES[options.machine],
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "ExposedPorts": {"8080/tcp": {}},
            "Env": ENVIRONMENT,
            "Entrypoint": ["/usr/bin/imgcls"],
            "Cmd": ["up"],
            "Volumes": {"/var/lib/imgcls": {}},
            "WorkingDir": "/var/lib/imgcls",
            "StopSignal": "SIGTERM",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
        "history": [{"created": created, "created_by": "scripts/make_oci_image.py"}],
    }
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, Any]:
        blobs[digest(content)] = content
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", json.dumps(configuration).encode()),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        "annotations": labels,
    }
    reference = blob("application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode())
    reference["annotations"] = {"org.opencontainers.image.ref.name": f"imgcls:{options.version}"}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [reference],
    }
    archive = Layer(layer.time)
    archive.file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    archive.file("index.json", json.dumps(index).encode())
    for name, content in sorted(blobs.items()):
        archive.file(f"blobs/sha256/{name.removeprefix('sha256:')}", content)
    archive.tar.close()
    options.out.write_bytes(archive.bytes.getvalue())


def digest(content: bytes) -> str:
    """Return the digest of a blob, as OCI writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    main()
