#!/usr/bin/env python3
"""Print the software bill of materials of a release: CycloneDX 1.5, JSON.

    scripts/make_sbom.py --machine x86_64

It lists the crates that are linked into the program, from cargo's own resolution, with licences and digests; ONNX
Runtime with the digest that scripts/onnxruntime.pins pins; and the models in models/ with the digests of their files.
The same source gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tomllib
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


Crate = dict[str, Any]
Component = dict[str, Any]


def main() -> None:
    """Prints the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=["x86_64", "aarch64"], required=True)
    machine = parser.parse_args().machine
    crates, edges, root = linked_crates(f"{machine}-unknown-linux-gnu")
    checksums = lock_checksums()
    program = crates.pop(root)
    components = [crate_component(crate, checksums) for crate in crates.values()]
    components.append(runtime_component(machine))
    components.extend(model_component(folder) for folder in sorted((ROOT / "models").iterdir()) if folder.is_dir())
    components.sort(key=lambda component: component["bom-ref"])
    dependencies = [{"ref": reference(crate), "dependsOn": sorted(map(reference, uses))} for crate, uses in edges]
    others = [component["bom-ref"] for component in components if not component["bom-ref"].startswith("pkg:cargo/")]
    for dependency in dependencies:
        if dependency["ref"] == reference(program):
            dependency["dependsOn"] = sorted(dependency["dependsOn"] + others)
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": timestamp(),
            "component": {
                "type": "application",
                "bom-ref": reference(program),
                "name": program["name"],
                "version": program["version"],
                "description": program["description"],
                "licenses": [{"expression": program["license"]}],
                "purl": reference(program),
            },
            "properties": [{"name": "imgcls:target", "value": f"{machine}-unknown-linux-gnu"}],
        },
        "components": components,
        "dependencies": sorted(dependencies, key=lambda dependency: dependency["ref"]),
    }
    text = json.dumps(bom, sort_keys=True)
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, text)}"
    print(json.dumps(bom, indent=1))


def linked_crates(target: str) -> tuple[dict[str, Crate], list[tuple[Crate, list[Crate]]], str]:
    """Return the crates that the program is linked from by id, those that each uses, and the id of the program."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]

    def is_library(package: Crate) -> bool:
        return not any("proc-macro" in target["kind"] for target in package["targets"])

    def used(node: dict[str, Any]) -> list[str]:
        # A kind of None is a normal dependency; the others are those of build scripts and tests.
        normal = (dep["pkg"] for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"]))
        return [package for package in normal if is_library(packages[package])]

    found: dict[str, Crate] = {}
    edges = []
    pending = [root]
    while pending:
        crate = pending.pop()
        if crate in found:
            continue
        found[crate] = packages[crate]
        uses = used(nodes[crate])
        edges.append((packages[crate], [packages[package] for package in uses]))
        pending.extend(uses)
    return found, edges, root


def lock_checksums() -> dict[tuple[str, str], str | None]:
    """Return the SHA-256 of each crate's archive, as Cargo.lock has it."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}


def reference(crate: Crate) -> str:
    """Return the package URL of a crate, which is also its reference in the document."""
    return f"pkg:cargo/{crate['name']}@{crate['version']}"


def crate_component(crate: Crate, checksums: dict[tuple[str, str], str | None]) -> Component:
    """Return the component of a crate."""
    component = {
        "type": "library",
        "bom-ref": reference(crate),
        "name": crate["name"],
        "version": crate["version"],
        "purl": reference(crate),
    }
    if crate["license"]:
        # An older spelling of OR, which is not an SPDX expression.
        component["licenses"] = [{"expression": " ".join(crate["license"].replace("/", " OR ").split())}]
    if checksum := checksums.get((crate["name"], crate["version"])):
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return component


def runtime_component(machine: str) -> Component:
    """Return the component of ONNX Runtime."""
    lines = [line.split() for line in (ROOT / "scripts/onnxruntime.pins").read_text().splitlines()]
    version = next(words[1] for words in lines if words[:1] == ["version"])
    digest = next(words[3] for words in lines if words[:1] == [machine])
    purl = f"pkg:pypi/onnxruntime@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": "onnxruntime",
        "version": version,
        "purl": purl,
        "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def model_component(folder: Path) -> Component:
    """Return the component of a model package, with its files as parts."""
    model = tomllib.loads((folder / "model.toml").read_text())
    files = sorted(path for path in folder.iterdir() if path.is_file())
    parts = [
        {
            "type": "file",
            "bom-ref": f"model:{folder.name}/{path.name}",
            "name": path.name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        }
        for path in files
    ]
    component = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{folder.name}",
        "name": model["name"],
        "version": str(model["version"]),
        "components": parts,
    }
    if licence := model.get("provenance", {}).get("licence"):
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def timestamp() -> str:
    """Return the time of the source, in RFC 3339."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    main()
