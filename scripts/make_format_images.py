"""Creates the images of tests/pictures/formats/ from tests/pictures/rgb.png by the encoders of Debian.

    apt-get install libheif-examples libavif-bin libjxl-tools libopenjp2-tools libtiff-tools
    python3 scripts/make_format_images.py    (needs Pillow)

Beside each image NAME.EXTENSION lies NAME.EXTENSION.png: its pixels as the reference decoder of the format shows them,
in 8 bits and blended over white. The tests compare with them and need none of these programs.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "pictures" / "rgb.png"
FOLDER = ROOT / "tests" / "pictures" / "formats"

# Encoders of HEVC extend smaller images to 64 pixels along each side.
SIZE = (72, 64)
EXIF_ORIENTATION = 0x0112

# The encoder of each file: the image that it reads, the program, and its arguments. {in} and {out} are files.
ENCODERS: dict[str, tuple[str, str]] = {
    "photo.heic": ("rgb.png", "heif-enc -q 70 {in} -o {out}"),
    "full-chroma.heic": ("rgb.png", "heif-enc -q 70 -p chroma=444 {in} -o {out}"),
    "ten-bit.heic": ("deep.png", "heif-enc -q 70 -b 10 {in} -o {out}"),
    "alpha.heic": ("rgba.png", "heif-enc -q 70 {in} -o {out}"),
    "odd-size.heic": ("odd.png", "heif-enc -q 70 {in} -o {out}"),
    "photo.avif": ("rgb.png", "avifenc -s 4 --min 15 --max 25 -y 420 -d 8 {in} {out}"),
    "ten-bit.avif": ("rgb.png", "avifenc -s 4 --min 15 --max 25 -y 444 -d 10 {in} {out}"),
    "alpha.avif": ("rgba.png", "avifenc -s 4 --min 15 --max 25 -y 422 {in} {out}"),
    "grey.avif": ("grey.png", "avifenc -s 4 --min 15 --max 25 -y 400 {in} {out}"),
    "turned.avif": ("rgb.png", "avifenc -s 4 --min 15 --max 25 --irot 1 --imir 1 {in} {out}"),
    "photo.jxl": ("rgb.png", "cjxl -d 1 {in} {out}"),
    "lossless-alpha.jxl": ("rgba.png", "cjxl -d 0 {in} {out}"),
    "from-jpeg.jxl": ("turned.jpg", "cjxl {in} {out}"),
    "photo.jp2": ("rgb.png", "opj_compress -i {in} -o {out}"),
    "lossy.jp2": ("rgb.png", "opj_compress -I -r 5 -i {in} -o {out}"),
    "grey.j2k": ("grey.png", "opj_compress -i {in} -o {out}"),
    "group3.tif": ("bilevel.tif", "tiffcp -c g3:1d:fill {in} {out}"),
    "group3-2d.tif": ("bilevel.tif", "tiffcp -c g3:2d {in} {out}"),
    "zstd.tif": ("rgb.tif", "tiffcp -c zstd:2 {in} {out}"),
    "lzma.tif": ("rgb.tif", "tiffcp -c lzma:2 {in} {out}"),
}

# The reference decoder of each extension; Pillow, with libavif and libtiff, for all others.
DECODERS = {
    ".heic": "heif-convert {in} {out}",
    ".jxl": "djxl {in} {out}",
    ".jp2": "opj_decompress -i {in} -o {out}",
    ".j2k": "opj_decompress -i {in} -o {out}",
}


def main() -> None:
    """Writes the folder."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_inputs(scratch)
        for target, (source, command) in ENCODERS.items():
            run(command, scratch / source, FOLDER / target)
            write_pixels(FOLDER / target, scratch)
        write_icon(FOLDER / "icon.ico")
        write_pixels(FOLDER / "icon.ico", scratch)


def write_inputs(scratch: Path) -> None:
    """Writes the images that the encoders read."""
    rgb = Image.open(SOURCE).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    rgb.save(scratch / "rgb.png")
    rgb.save(scratch / "rgb.tif")
    (scratch / "deep.png").write_bytes(png_of_16_bits(rgb))
    rgb.crop((0, 0, 61, 45)).save(scratch / "odd.png")
    with_alpha(rgb).save(scratch / "rgba.png")
    rgb.convert("L").save(scratch / "grey.png")
    rgb.convert("L").point(lambda value: 255 if value > 110 else 0).convert("1").save(scratch / "bilevel.tif")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(scratch / "turned.jpg", quality=85, exif=exif)


def png_of_16_bits(rgb: Image.Image) -> bytes:
    """The image with 16 bits a sample, which Pillow does not write."""
    width, height = rgb.size
    samples = rgb.tobytes()
    row_bytes = 3 * width
    rows = [samples[start : start + row_bytes] for start in range(0, len(samples), row_bytes)]
    data = b"".join(b"\0" + bytes(byte for sample in row for byte in (sample, sample)) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_alpha(rgb: Image.Image) -> Image.Image:
    """An image whose opacity grows from left to right."""
    alpha = Image.new("L", rgb.size)
    width, height = rgb.size
    alpha.putdata([255 * x // (width - 1) for _ in range(height) for x in range(width)])
    rgba = rgb.convert("RGBA")
    rgba.putalpha(alpha)
    return rgba


def write_icon(path: Path) -> None:
    """Writes an icon of two sizes, whose images are PNGs."""
    square = with_alpha(Image.open(SOURCE).convert("RGB").resize((48, 48), Image.Resampling.LANCZOS))
    square.save(path, sizes=[(16, 16), (48, 48)])


def write_pixels(path: Path, scratch: Path) -> None:
    """Writes the pixels of an image as its reference decoder shows them."""
    decoder = DECODERS.get(path.suffix)
    decoded = scratch / "decoded.png"
    if decoder:
        decoded.unlink(missing_ok=True)
        run(decoder, path, decoded)
    image = Image.open(decoded) if decoder else ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value // 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image.convert("RGB").save(path.with_name(path.name + ".png"), optimize=True)


def run(command: str, source: Path, target: Path) -> None:
    """Runs a program that reads one file and writes another."""
    arguments = [word.format(**{"in": source, "out": target}) for word in command.split()]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    main()
