#!/usr/bin/env python3
"""Measures the time and memory that small, expensive files cost the decoders of a binary.

    scripts/attack/decode_bombs.py --binary target/release/imgcls [--only tiff] [--timeout 60] [--keep FOLDER]

Creates the files, classifies each with its own `imgcls classify` process, whose address space is limited to 8 GB, and
prints its size, CPU time, maximum resident memory and answer. It sends nothing over the network and ends by itself
after at most --timeout seconds per file. The exit code is 0 if every file was answered in time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

ADDRESS_SPACE_BYTES = 8 << 30


def main() -> int:
    """Attacks with each file; the exit code is 1 if one was not answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=Path("target/release/imgcls"), help="the imgcls to attack")
    parser.add_argument("--only", default="", help="only files whose name contains this")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one file, at most 600")
    parser.add_argument("--keep", type=Path, help="keep the files in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'file':34} {'bytes':>10} {'CPU s':>8} {'peak MB':>8}  answer")
        answered = True
        for name, make in FILES.items():
            if arguments.only in name:
                path = folder / name
                path.write_bytes(make())
                answered &= attack(arguments.binary, path, min(arguments.timeout, 600.0))
    return 0 if answered else 1


def attack(binary: Path, path: Path, timeout: float) -> bool:
    """Classifies one file; returns true if it was answered in time."""
    process = subprocess.Popen(
        [binary, "classify", "--json", "--top-k", "1", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES)),  # noqa: PLW1509
    )
    deadline = time.monotonic() + timeout
    pid, status, usage = 0, 0, None
    while pid == 0 and time.monotonic() < deadline:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        time.sleep(0.005)
    if pid == 0:
        process.kill()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    output = process.stdout.read() if process.stdout else b""
    cpu = usage.ru_utime + usage.ru_stime
    size, peak = path.stat().st_size, usage.ru_maxrss / 1000
    print(f"{path.name:34} {size:>10} {cpu:>8.2f} {peak:>8.0f}  {answer(output, timeout)}", flush=True)
    return bool(output)


def answer(output: bytes, timeout: float) -> str:
    """The answer in one line."""
    if not output:
        return f"none within {timeout:.0f} s, or the process died"
    line = json.loads(output)
    if "error" in line:
        return f"{line['error']['code']}: {line['error']['message']}"
    return line["predictions"][0]["label"]


# TIFF


def tiff(width: int, height: int, strips: list[tuple[int, int]], body: bytes, **tags: list[int]) -> bytes:
    """A TIFF whose strips are (offset, length) in `body`; `tags` have the names below."""
    numbers = {"bits": 258, "compression": 259, "photometric": 262, "samples": 277, "rows": 278, "planar": 284}
    numbers |= {"extra": 338, "format": 339}
    values = {256: [width], 257: [height]} | {numbers[name]: value for name, value in tags.items()}
    values[273] = [8 + offset for offset, _ in strips]
    values[279] = [length for _, length in strips]
    out = bytearray(b"II*\0\0\0\0\0" + body)
    entries = []
    for tag, value in sorted(values.items()):
        is_short = tag not in (256, 257, 273, 278, 279)
        data = struct.pack(f"<{len(value)}{'H' if is_short else 'I'}", *value)
        if len(data) > 4:
            at = len(out)
            out += data
            data = struct.pack("<I", at)
        entries.append(struct.pack("<HHI", tag, 3 if is_short else 4, len(value)) + data.ljust(4, b"\0"))
    out[4:8] = struct.pack("<I", len(out))
    return bytes(out) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def empty_blocks(count: int) -> bytes:
    """A zlib stream of `count` empty stored blocks, and then one byte."""
    checksum = struct.pack(">I", zlib.adler32(b"\x11"))
    return b"\x78\x01" + b"\0\0\0\xff\xff" * count + b"\x01\x01\0\xfe\xff\x11" + checksum


def tiff_one_stream(blocks: int, strips: int) -> bytes:
    """All strips share one stream that is expensive to inflate."""
    stream = empty_blocks(blocks)
    tags = {"bits": [8], "compression": [8], "photometric": [1], "samples": [1], "rows": [1]}
    return tiff(1, strips, [(0, len(stream))] * strips, stream, **tags)


def tiff_many_strips() -> bytes:
    """A TIFF with 1.2 million strips."""
    stream = zlib.compress(b"\x11" * 40)
    count = 1_200_000
    return tiff(
        40, count // 3, [(0, len(stream))] * count, stream,
        bits=[8] * 3, compression=[8], photometric=[2], samples=[3], rows=[1], planar=[2],
    )  # fmt: skip


def tiff_rgba(bits: int, is_float: bool, rows: int = 100) -> bytes:
    """8000 x 6200 pixels of one value."""
    width, height = 8000, 6200
    row = b"\x11" * (width * 4 * bits // 8)
    compressor = zlib.compressobj(9)
    strip = b"".join(compressor.compress(row) for _ in range(rows)) + compressor.flush()
    count = height // rows
    strips = [(index * len(strip), len(strip)) for index in range(count)]
    kind = [3 if is_float else 1] * 4
    return tiff(
        width, height, strips, strip * count,
        bits=[bits] * 4, compression=[8], photometric=[2], samples=[4], rows=[rows], extra=[2], format=kind,
    )  # fmt: skip


# PNG


def png(width: int, height: int, depth: int, colour: int, *, interlaced: int, raw: Callable[[], bytes]) -> bytes:
    """A PNG with this compressed data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", raw()) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(count: int) -> bytes:
    """A zlib stream of zeros."""
    compressor = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return (
        b"".join(compressor.compress(piece) for _ in range(count >> 20))
        + compressor.compress(bytes(count & ((1 << 20) - 1)))
        + compressor.flush()
    )


def png_one_wide(interlaced: int) -> bytes:
    """A PNG that is one pixel wide and 49 million high."""
    return png(1, 49_000_000, 8, 0, interlaced=interlaced, raw=lambda: zeros(2 * 49_000_000))


def png_rgba16() -> bytes:
    """A PNG with four 16-bit channels."""
    return png(8000, 6200, 16, 6, interlaced=0, raw=lambda: zeros(6200 * (1 + 8 * 8000)))


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def huffman(kind: int, codes: dict[int, list[int]]) -> bytes:
    """A Huffman table with these codes by length."""
    lengths = bytes(len(codes.get(bits, [])) for bits in range(1, 17))
    return segment(0xC4, bytes([kind]) + lengths + b"".join(bytes(codes[bits]) for bits in sorted(codes)))


def scan(first: int, last: int, high: int, low: int, data: bytes) -> bytes:
    """A scan of a progressive JPEG."""
    return segment(0xDA, bytes([1, 1, 0, first, last, high << 4 | low])) + data


def jpeg_progressive(side: int, bands: int, refinements: int) -> bytes:
    """A grey progressive JPEG with `bands` coefficients in each block that are refined repeatedly.

    The last scan is damaged, so that one decoder gives up after all that work and another one starts over.
    """
    blocks = (side // 8) ** 2
    out = b"\xff\xd8" + segment(0xDB, bytes([0]) + b"\1" * 64)
    out += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    # DC: every difference is 0, with a code of one bit.
    out += huffman(0x00, {1: [0]}) + scan(0, 0, 0, 0, bytes(blocks // 8))
    # AC: the code 0 is followed by a coefficient of one bit, so 01 is +1.
    out += huffman(0x10, {1: [0x01], 2: [0x00]})
    out += scan(1, bands, 0, refinements, b"\x55" * (blocks * bands * 2 // 8))
    # AC again: the code 0 ends a block and is followed by a correction bit for each nonzero coefficient.
    out += huffman(0x10, {1: [0x00]})
    for low in reversed(range(refinements)):
        out += scan(1, bands, low + 1, low, bytes(blocks * (bands + 1) // 8))
    return out + scan(1, 63, 0, 0, b"\xaa" * 64) + b"\xff\xd9"


def jpeg_many_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG in which every scan visits all 63 coefficients of every block and finds none.

    Repeating a scan violates the standard, so that one decoder fails at the end and another one starts over.
    """
    blocks = (side // 8) ** 2
    out = b"\xff\xd8" + segment(0xDB, bytes([0]) + b"\1" * 64)
    out += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    out += huffman(0x00, {1: [0]}) + scan(0, 0, 0, 0, bytes(blocks // 8))
    out += huffman(0x10, {1: [0x00]}) + scan(1, 63, 0, 1, bytes(blocks // 8))
    return out + scan(1, 63, 1, 0, bytes(blocks // 8)) * (scans - 2) + b"\xff\xd9"


# WebP


def webp_lossless() -> bytes:
    """16,000 x 3,000 pixels of one colour: five trees with one symbol each, so that a pixel takes no bits."""
    width, height = 16_000, 3_000
    bits = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    for _ in range(5):
        bits += [(1, 1), (0, 1), (0, 1), (0, 1)]
    value = length = 0
    for number, count in bits:
        value |= number << length
        length += count
    data = value.to_bytes(-(-length // 8) + 8, "little")
    data += b"\0" * (len(data) & 1)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


FILES: dict[str, Callable[[], bytes]] = {
    "tiff-one-stream-small.tif": lambda: tiff_one_stream(26_000, 16_000),
    "tiff-one-stream.tif": lambda: tiff_one_stream(280_000, 175_000),
    "tiff-1200000-strips.tif": tiff_many_strips,
    "tiff-float-rgba.tif": lambda: tiff_rgba(32, True),
    "tiff-float-rgba-one-strip.tif": lambda: tiff_rgba(32, True, 6200),
    "tiff-rgba16.tif": lambda: tiff_rgba(16, False),
    "png-interlaced-1-wide.png": lambda: png_one_wide(1),
    "png-1-wide.png": lambda: png_one_wide(0),
    "png-rgba16.png": png_rgba16,
    "jpeg-progressive-damaged-1.jpg": lambda: jpeg_progressive(7000, 20, 3),
    "jpeg-progressive-damaged-2.jpg": lambda: jpeg_progressive(7000, 4, 13),
    "jpeg-many-scans.jpg": lambda: jpeg_many_scans(7000, 20),
    "webp-lossless.webp": webp_lossless,
}

if __name__ == "__main__":
    sys.exit(main())
