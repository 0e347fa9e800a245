"""Creates the images of tests/pictures/ and src/loadgen/samples/ from free photographs.

    scripts/in-export-env scripts/make_test_pictures.py

The photographs come from the scikit-image wheel, pinned by sha256. Everything else is drawn or damaged by this script.
With the pinned Pillow, two runs write the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from imgcls_models import photographs
from imgcls_models.registry import SCIKIT_IMAGE

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "tests" / "pictures"
SAMPLES = ROOT / "src" / "loadgen" / "samples"

SAMPLE_PHOTOGRAPHS = (
    photographs.ASTRONAUT,
    photographs.CAMERA,
    photographs.CHELSEA,
    photographs.CLOCK,
    photographs.COFFEE,
    photographs.ROCKET,
)
SAMPLE_SIDE = 480
SAMPLE_BYTES = 40_000

ADOBE_MARKER = b"\xff\xee"
EXIF_ORIENTATION = 0x0112
# The operation on the upright image that a reader undoes because of the orientation.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

Files = dict[str, bytes]


def main() -> None:
    """Writes both folders, each with its SOURCES.md."""
    samples = {f"{photograph.stem}.jpg": sample(photograph) for photograph in SAMPLE_PHOTOGRAPHS}
    write_folder(SAMPLES, samples)
    (SAMPLES / "SOURCES.md").write_text(samples_sources(samples), encoding="utf-8")

    good, (hostile, expected) = good_images(), hostile_images()
    write_folder(IMAGES, good)
    write_folder(IMAGES / "hostile", hostile)
    (IMAGES / "hostile" / "expected.json").write_text(f"{json.dumps(expected, indent=2)}\n", encoding="utf-8")
    (IMAGES / "SOURCES.md").write_text(image_sources(good, hostile), encoding="utf-8")


# --- samples -------------------------------------------------------------------------------------------------------


def sample(photograph: photographs.Photograph) -> bytes:
    """Encodes a photograph as a small JPEG, with the best quality that fits."""
    image = photograph.open()
    image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.LANCZOS)
    encoded = (encode(image, "JPEG", quality=quality, optimize=True) for quality in range(88, 40, -4))
    return next(content for content in encoded if len(content) <= SAMPLE_BYTES)


# --- valid images --------------------------------------------------------------------------------------------------


def good_images() -> Files:
    """One photograph, which the model names with confidence, in every form that is read; and two more for the eye."""
    cup = photographs.COFFEE.open().resize((300, 200), Image.Resampling.LANCZOS)
    small = cup.resize((150, 100), Image.Resampling.LANCZOS)
    cat = photographs.CHELSEA.open().resize((300, 200), Image.Resampling.LANCZOS)
    rocket = photographs.ROCKET.open().resize((320, 214), Image.Resampling.LANCZOS)
    veiled = with_alpha(cup)
    few_colours = cup.quantize(64)
    cmyk = encode(cup.convert("CMYK"), "JPEG", quality=85)
    files = {
        "cup.jpg": encode(cup, "JPEG", quality=85),
        "cat.jpg": encode(cat, "JPEG", quality=85),
        "rocket.jpg": encode(rocket, "JPEG", quality=80),
        "progressive.jpg": encode(cup, "JPEG", quality=85, progressive=True),
        "grey.jpg": encode(cup.convert("L"), "JPEG", quality=85),
        "full-chroma.jpg": encode(cup, "JPEG", quality=85, subsampling="4:4:4"),
        "odd-size.jpg": encode(cup.resize((201, 133), Image.Resampling.LANCZOS), "JPEG", quality=85),
        # Pillow writes inverted CMYK with an Adobe marker, as is usual. Some tools remove the marker.
        "cmyk-adobe.jpg": cmyk,
        "cmyk-without-marker.jpg": b"".join(part for part in jpeg_segments(cmyk) if not part.startswith(ADOBE_MARKER)),
        "rgb.png": encode(cup, "PNG", optimize=True),
        "rgba.png": encode(veiled, "PNG", optimize=True),
        "palette.png": encode(few_colours, "PNG", optimize=True),
        "palette-transparent.png": encode(few_colours, "PNG", transparency=most_used(few_colours)),
        "grey-alpha.png": encode(veiled.convert("LA"), "PNG", optimize=True),
        "grey-16bit.png": png16(cup.convert("L")),
        "rgb-16bit.png": png16(small),
        "one-pixel.png": encode(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
        "one-by-3000.png": encode(stripe(3000), "PNG"),
        "black-49-megapixels.png": encode(Image.new("RGB", (7000, 7000)), "PNG", compress_level=9),
        "lossy.webp": encode(cup, "WEBP", quality=80),
        "lossless-alpha.webp": encode(veiled, "WEBP", lossless=True),
        "animated.gif": animated_gif([cup, cat, ImageOps.mirror(cup)]),
        "rgb.bmp": encode(small, "BMP"),
        "rgb-lzw.tiff": encode(cup, "TIFF", compression="tiff_lzw"),
    }
    return files | {f"orientation-{value}.jpg": oriented(small, value) for value in STORED_AS}


def with_alpha(image: Image.Image) -> Image.Image:
    """Adds an alpha channel: opaque in the middle column, fading out to both sides, transparent in one corner."""
    columns = np.arange(image.width)
    ramp = 255 * np.minimum(columns, columns[::-1]) // (image.width // 2)
    alpha = np.tile(ramp.astype(np.uint8), (image.height, 1))
    alpha[: image.height // 3, : image.width // 2] = 0
    veiled = image.copy()
    veiled.putalpha(Image.fromarray(alpha))
    return veiled


def most_used(image: Image.Image) -> int:
    """The most frequent palette index."""
    return int(np.bincount(np.asarray(image).ravel()).argmax())


def stripe(height: int) -> Image.Image:
    """A column one pixel wide, from red to blue."""
    ramp = np.linspace(0, 255, height).astype(np.uint8)
    return Image.fromarray(np.stack([255 - ramp, np.zeros_like(ramp), ramp], axis=-1)[:, None])


def oriented(image: Image.Image, value: int) -> bytes:
    """A JPEG that is stored rotated or mirrored, with the matching EXIF orientation."""
    operation = STORED_AS[value]
    stored = image if operation is None else image.transpose(operation)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = value
    return encode(stored, "JPEG", quality=85, exif=exif)


def animated_gif(frames: list[Image.Image]) -> bytes:
    """A GIF of a few small frames."""
    first, *others = [frame.resize((150, 100), Image.Resampling.LANCZOS).quantize(64) for frame in frames]
    return encode(first, "GIF", save_all=True, append_images=others, duration=200, loop=0)


def png16(image: Image.Image) -> bytes:
    """A PNG with 16 bits per sample, whose low bytes differ from the high ones."""
    high = np.asarray(image).astype(np.uint16)
    samples = (high << 8) | ((high * 37 + 11) & 0xFF)
    colour_type = 2 if samples.ndim == 3 else 0
    rows = samples.astype(">u2").reshape(image.height, -1)
    raw = b"".join(b"\x00" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, colour_type, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")])


# --- hostile images ------------------------------------------------------------------------------------------------


def hostile_images() -> tuple[Files, dict[str, dict[str, str]]]:
    """The files, and the expected error code of each by name; `any` if only time and memory are checked."""
    cup = photographs.COFFEE.open().resize((300, 200), Image.Resampling.LANCZOS)
    jpeg = encode(cup, "JPEG", quality=85)
    png_file = encode(cup.resize((150, 100)), "PNG", optimize=True)
    cases: list[tuple[str, bytes, str, str]] = [
        ("half.jpg", jpeg[: len(jpeg) // 2], "undecodable", "half of it; a lenient decoder shows the rest grey"),
        ("half.png", png_file[: len(png_file) // 2], "undecodable", "the second half is missing"),
        ("head-only.jpg", jpeg[:20], "undecodable", "20 bytes of a JPEG"),
        ("empty.jpg", b"", "unsupported_type", "no bytes"),
        ("text.jpg", b"This is not an image.\n" * 20, "unsupported_type", "text under the name of an image"),
        ("vector.svg", SVG, "unsupported_type", "a vector image"),
        ("document.pdf", PDF, "unsupported_type", "the beginning of a PDF"),
        ("huge-header.png", huge_png(), "too_many_pixels", "65500 x 65500 in the header, few bytes"),
        ("huge-header.jpg", huge_jpeg(), "too_many_pixels", "65500 x 65500 in the header, few bytes"),
        ("zero-size.png", zero_size_png(), "undecodable", "0 x 0 in the header"),
        ("bad-checksum.png", flip_byte(png_file, len(png_file) // 2), "undecodable", "a damaged chunk of pixels"),
        ("many-scans.jpg", many_scans_jpeg(), "any", "16 megapixels, one scan repeated 400 times"),
    ]
    files = {name: content for name, content, _, _ in cases}
    return files, {name: {"code": code, "why": why} for name, _, code, why in cases}


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><circle cx="32" cy="32" r="30"/></svg>\n'
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
HUGE = 65_500


def huge_png() -> bytes:
    """A header of four billion pixels with almost no data."""
    header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")])


def zero_size_png() -> bytes:
    """A header of zero width and height."""
    return png([(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])


def huge_jpeg() -> bytes:
    """A small JPEG whose frame header claims the largest size that libjpeg accepts."""
    content = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", HUGE, HUGE)
    return bytes(content)


def many_scans_jpeg() -> bytes:
    """A large progressive JPEG with one repeated scan: each copy visits every block and takes few bytes."""
    segments = jpeg_segments(encode(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True, optimize=True))
    scans = [index for index, segment in enumerate(segments) if segment[:2] == b"\xff\xda"]
    cheapest = min(scans, key=lambda index: len(segments[index]))
    return b"".join([*segments[: cheapest + 1], *[segments[cheapest]] * 400, *segments[cheapest + 1 :]])


def flip_byte(content: bytes, position: int) -> bytes:
    """Inverts one byte."""
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


# --- formats -------------------------------------------------------------------------------------------------------


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """Encodes an image to the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG of the given chunks, with correct checksums."""
    framed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def jpeg_segments(content: bytes) -> list[bytes]:
    """Splits a JPEG before each marker. The entropy-coded bytes of a scan stay with its header."""
    cuts, position = [0, 2], 2
    while content[position : position + 2] != b"\xff\xd9":
        scan = content[position + 1] == 0xDA
        position += 2 + struct.unpack_from(">H", content, position + 2)[0]
        while scan and (content[position] != 0xFF or content[position + 1] in (0x00, *range(0xD0, 0xD8))):
            position += 1
        cuts.append(position)
    return [content[start:end] for start, end in zip(cuts, [*cuts[1:], len(content)], strict=True)]


# --- folders -------------------------------------------------------------------------------------------------------


def write_folder(folder: Path, files: Files) -> None:
    """Writes the files to the folder, and removes files of an earlier run that are no longer created."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_file() and old.name not in files:
            old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def samples_sources(samples: Files) -> str:
    """The SOURCES.md of the samples."""
    rows = [
        f"| `{name}` | {photograph.shows} | {photograph.licence} | `{photograph.member}` | `{digest(samples[name])}` |"
        for photograph, name in zip(SAMPLE_PHOTOGRAPHS, samples, strict=True)
    ]
    head = [
        "# Sources of the samples",
        "",
        f"Photographs of the wheel `{SCIKIT_IMAGE.name}` {SCIKIT_IMAGE.version} (sha256 `{SCIKIT_IMAGE.sha256}`),",
        "made smaller by `scripts/make_test_pictures.py`. The docstring of each photograph in",
        "`skimage/data/_fetchers.py` states its licence.",
        "",
        "| file | shows | licence | from | sha256 |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def image_sources(good: Files, hostile: Files) -> str:
    """The SOURCES.md of the test images."""
    used = (photographs.COFFEE, photographs.CHELSEA, photographs.ROCKET)
    rows = [f"| {photograph.shows} | {photograph.licence} | `{photograph.member}` |" for photograph in used]
    named = {**good, **{f"hostile/{name}": content for name, content in hostile.items()}}
    head = [
        "# Sources of the test images",
        "",
        "All are written by `scripts/make_test_pictures.py`: from three photographs of the wheel",
        f"`{SCIKIT_IMAGE.name}` {SCIKIT_IMAGE.version} (sha256 `{SCIKIT_IMAGE.sha256}`), or drawn.",
        "The docstring of each photograph in `skimage/data/_fetchers.py` states its licence.",
        "`hostile/expected.json` states the expected error code of each hostile file; `any`: only the cost is checked.",
        "",
        "| shows | licence | from |",
        "|---|---|---|",
        *rows,
        "",
        "| file | sha256 |",
        "|---|---|",
    ]
    return "\n".join([*head, *(f"| `{name}` | `{digest(content)}` |" for name, content in named.items())]) + "\n"


def digest(content: bytes) -> str:
    """The sha256 as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
