"""Adds classifiers as other tools export them, and compares the program's scores with those of the tools.

    scripts/check-models
    scripts/check-models --images DIR --only open-nsfw ultralytics-cls
    scripts/check-models --docs

It writes about 16 exports into .cache/check-models, adds each by one `imgcls model add`, classifies the same images
with `imgcls classify --json`, and computes the same scores with Pillow, numpy and ONNX Runtime in Python, by what each
framework documents. The largest difference of a score may be 0.02; 8-bit files must have the same best class in 98 %.
The shipped files are compared twice: with Pillow's resize, which added models have, and as they are, with the faster
one, whose differences are only shown. The exit status is 0 if all exports agree, and 1 if one does not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from imgcls_exports import compare, exports, images, references, table
from imgcls_exports.compare import CheckError, Program
from imgcls_exports.exports import Export
from imgcls_models.registry import RegistryError

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "check-models"
SHIPPED = ROOT / "models" / "efficientnet-lite0"
VARIANTS = ("fp16", "int8", "int7")


def main() -> int:
    """Returns 0 if everything agrees, 1 otherwise. argparse exits with 2 on wrong usage."""
    arguments = parse_arguments()
    try:
        rows = check(arguments)
    except (CheckError, RegistryError, OSError) as error:
        print(f"check-models: {error}", file=sys.stderr)
        return 1
    text = table.markdown(rows)
    print(text, end="")
    if arguments.docs:
        table.write(ROOT / "docs" / "models.md", text)
    wrong = [row.shape for row in rows if not row.passed]
    if wrong:
        print(f"check-models: {len(wrong)} of {len(rows)} differ: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="scripts/check-models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="a folder of images; full-size JPEGs, or PNG (default: free ones)"
    )
    parser.add_argument("--count", type=int, default=60, help="number of free images (default: 60)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of exports (default: all)")
    parser.add_argument(
        "--imgcls",
        type=Path,
        default=ROOT / "target" / "release" / "imgcls",
        metavar="FILE",
        help="the program (default: target/release/imgcls)",
    )
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/models.md")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> list[table.Row]:
    """Makes the exports and compares each one."""
    models_dir = CACHE / "models"
    shutil.rmtree(models_dir, ignore_errors=True)
    program = Program(arguments.imgcls, models_dir)
    folder = arguments.images
    chosen = images.in_folder(folder) if folder else images.free(CACHE / "images", arguments.count)
    made = exports.build(CACHE / "exports")
    rows = []
    for export in made:
        if not arguments.only or export.name in arguments.only:
            rows.append(check_export(program, export, chosen))
            report(export.name, rows[-1])
    for variant in VARIANTS:
        if not arguments.only or variant in arguments.only:
            for folder in (with_exact_resize(models_dir), SHIPPED):
                rows.append(check_shipped(program, folder, variant, chosen))
                report(variant, rows[-1])
    return rows


def report(name: str, row: table.Row) -> None:
    """Prints a line of progress."""
    worst = "" if isinstance(row.outcome, str) else f"; most on {row.outcome.worst}"
    print(f"check-models: {name}: {', '.join(row.cells()[2:])}{worst}", file=sys.stderr)


def check_export(program: Program, export: Export, chosen: Sequence[Path]) -> table.Row:
    """Adds one export and compares its scores."""
    options = f"`{' '.join(shown(option) for option in export.options)}`" if export.options else "no option"

    def compared() -> compare.Comparison:
        program.add(export)
        return compare.compare(chosen, program.classify(export.name, chosen), compare.reference_scores(export, chosen))

    return table.Row(export.shape, options, outcome(compared))


def with_exact_resize(parent: Path) -> Path:
    """A copy of the shipped package that is resized with Pillow's arithmetic, as added packages are."""
    folder = parent / "shipped-with-exact-resize"
    if not folder.exists():
        shutil.copytree(SHIPPED, folder)
        description = folder / "model.toml"
        text = description.read_text(encoding="utf-8")
        text = text.replace('resize = "short-side"', 'resize = "shortest-edge"').replace("short_side =", "size =")
        description.write_text(text, encoding="utf-8")
    return folder


def check_shipped(program: Program, folder: Path, variant: str, chosen: Sequence[Path]) -> table.Row:
    """Compares a file of the shipped model."""
    is_shipped = folder == SHIPPED

    def compared() -> compare.Comparison:
        found = program.classify(str(folder), chosen, ["--variant", variant])
        return compare.compare(chosen, found, shipped_scores(variant, chosen), is_8_bit=variant != "fp16")

    how = "shipped" if is_shipped else 'with `resize = "shortest-edge"`'
    return table.Row(f"efficientnet-lite0, {variant}", how, outcome(compared), resizes_faster=is_shipped)


def outcome(compared: Callable[[], compare.Comparison]) -> compare.Comparison | str:
    """The differences, or the reason why the program did not get so far."""
    try:
        return compared()
    except CheckError as error:
        return str(error)


def shipped_scores(variant: str, chosen: Sequence[Path]) -> Iterator[np.ndarray]:
    """Short side to 256, bicubic, centre of 224; pixels for the 8-bit files, (x - 127) / 128 for the other."""
    session = compare.python_session(SHIPPED / f"efficientnet-lite0-{variant}.onnx")
    reference = references.torchvision(256, 224, references.BICUBIC, (0.0,) * 3, (1 / 255,) * 3)
    for path in chosen:
        values = np.rint(reference(compare.upright(path)))
        if variant == "fp16":
            values = ((values - 127) / 128).transpose(2, 0, 1).astype(np.float32)
        else:
            values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=2).astype(np.uint8)
        yield compare.activated(compare.run(session, np.ascontiguousarray(values)), "softmax")


def shown(option: str) -> str:
    """An option without the folder of a file."""
    return Path(option).name if "/" in option else option


if __name__ == "__main__":
    sys.exit(main())
