"""Checks the files of deploy/: Kubernetes manifests against Kubernetes' schemas, kustomizations, and the Compose files.

scripts/check-deploy runs it in an environment that has kubernetes-validate and PyYAML.
"""

import pathlib
import sys

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
# Kinds that a cluster knows only with KEDA. Their schemas are not Kubernetes'.
OTHER_KINDS = ("ScaledObject", "TriggerAuthentication")
KUSTOMIZE_KINDS = ("Kustomization", "Component")


def documents(path: pathlib.Path) -> list:
    """Read the documents of a file, without empty ones."""
    with path.open() as file:
        return [document for document in yaml.safe_load_all(file) if document is not None]


def kustomization_faults(path: pathlib.Path, document: dict) -> list[str]:
    """Every file that a kustomization names exists, and every manifest beside it is named."""
    named = [*document.get("resources", []), *document.get("components", [])]
    missing = [name for name in named if not (path.parent / name).exists()]
    beside = {file.name for file in path.parent.glob("*.yaml")} - {path.name}
    return [f"{name} does not exist" for name in missing] + [
        f"{name} is not among the resources" for name in sorted(beside - set(named))
    ]


def manifest_faults(path: pathlib.Path, document: dict, version: str) -> list[str]:
    """Check one document against the schema of its kind."""
    kind = document.get("kind", "")
    if kind in KUSTOMIZE_KINDS:
        return kustomization_faults(path, document)
    if kind in OTHER_KINDS:
        return [] if document.get("spec") else [f"{kind} has no spec"]
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        place = ".".join(str(part) for part in getattr(error, "path", []))
        return [f"{kind} {place}: {getattr(error, 'message', error)}"]
    return []


def compose_faults(path: pathlib.Path) -> list[str]:
    """Check that services and volumes of the Compose file that are named exist."""
    (document,) = documents(path)
    services = document["services"]
    faults = []
    for name, service in services.items():
        if "image" not in service:
            faults.append(f"the service {name} has no image")
        faults += [f"{name} depends on {other}" for other in service.get("depends_on", []) if other not in services]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith((".", "/")) and source not in document.get("volumes", {}):
                faults.append(f"{name} uses the volume {source}")
    return faults


def main() -> int:
    """Check everything, and print the faults."""
    version = kubernetes_validate.latest_version()
    faults = []
    count = 0
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        for document in documents(path):
            count += 1
            faults += [f"{path.relative_to(ROOT)}: {fault}" for fault in manifest_faults(path, document, version)]
    for compose in (DEPLOY / "compose.yaml", DEPLOY / "nats" / "compose.yaml"):
        faults += [f"{compose.relative_to(ROOT)}: {fault}" for fault in compose_faults(compose)]
    if count == 0:
        faults.append("deploy/kubernetes: no manifest was found")
    for fault in faults:
        print(f"check-deploy: {fault}", file=sys.stderr)
    if not faults:
        print(f"check-deploy: {count} manifests fit Kubernetes {version}, and the Compose files have no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
