"""Ways to damage a file, each a function of a random generator, the file's bytes and those of another one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from random import Random

BYTES = (0, 1, 0x10, 0x7F, 0x80, 0xFF)
NUMBERS = (0, 1, 2, 0x7FFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NESTING = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex")
HEADER = 700


def parts(data: bytes) -> list[tuple[int, int]]:
    """Where the boxes, chunks or packets of a file begin and end, the nested ones of an MP4 too."""
    if data[4:8] in (b"ftyp", b"styp", b"moov", b"moof"):
        return list(_boxes(data, 0, len(data)))
    if data[:4] == b"RIFF":
        return list(_chunks(data, 12, "<4sI", 0))
    if data[:4] == b"\x89PNG":
        return list(_chunks(data, 8, ">I4s", 4))
    size = 188 if data[:1] == b"\x47" else 64
    return [(start, min(start + size, len(data))) for start in range(0, len(data), size)]


def _boxes(data, start, end):
    while start + 8 <= end:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        if length < 8 or start + length > end:
            return
        yield start, start + length
        if kind in NESTING:
            yield from _boxes(data, start + 8, start + length)
        start += length


def _chunks(data, start, header, behind):
    while start + 8 <= len(data):
        length = next(part for part in struct.unpack(header, data[start : start + 8]) if isinstance(part, int))
        yield start, min(start + 8 + length + length % 2 * (not behind) + behind, len(data))
        start += 8 + length + length % 2 * (not behind) + behind


def flip_header(rng, data, other):
    return _flip(rng, data, min(HEADER, len(data)))


def flip_anywhere(rng, data, other):
    return _flip(rng, data, len(data))


def _flip(rng, data, end):
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_part(rng, data, other):
    start, end = rng.choice(parts(data) or [(0, len(data))])
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        damaged[rng.randrange(start, min(end, start + 64))] = rng.choice(BYTES)
    return bytes(damaged)


def set_number(rng, data, other):
    start, end = rng.choice(parts(data) or [(0, len(data))])
    damaged, at = bytearray(data), min(rng.randrange(start, min(end, start + 64)), max(len(data) - 4, 0))
    damaged[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))
    return bytes(damaged)


def cut(rng, data, other):
    return data[: rng.randrange(1, max(len(data), 2))]


def cut_out(rng, data, other):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 400) :]


def zero_part(rng, data, other):
    start, end = rng.choice(parts(data) or [(0, len(data))])
    start += rng.choice((0, min(8, end - start)))
    return data[:start] + bytes(end - start) + data[end:]


def drop_part(rng, data, other):
    start, end = rng.choice(parts(data) or [(0, len(data))])
    return data[:start] + data[end:]


def swap_parts(rng, data, other):
    found = parts(data)
    (a, b), (c, d) = sorted(rng.choices(found, k=2)) if found else ((0, 0), (0, 0))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data


def repeat_part(rng, data, other):
    start, end = rng.choice(parts(data) or [(0, len(data))])
    return data[:end] + data[start:end] * rng.choice((1, 3, 50)) + data[end:]


def splice(rng, data, other):
    (start, end), (first, last) = (rng.choice(parts(whole) or [(0, len(whole))]) for whole in (data, other))
    return data[:start] + other[first:last] + data[rng.choice((start, end)) :]


WAYS: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    flip_header, flip_anywhere, flip_part, flip_part, set_number, set_number, cut, cut_out, zero_part, drop_part,
    swap_parts, repeat_part, splice,
)  # fmt: skip


def damaged(seed: int, number: int, seeds: Mapping[str, bytes]) -> tuple[str, bytes]:
    """The damaged file of this number: its name, sometimes with another file's suffix, and what it holds."""
    rng = Random(f"{seed}:{number}")
    names = list(seeds)
    name = rng.choice(names)
    data = seeds[name]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(WAYS)(rng, data, seeds[rng.choice(names)]) or b"\0"
    suffix = rng.choice(names).rsplit(".")[-1] if rng.random() < 0.1 else name.rsplit(".")[-1]
    return f"{number}-{name.rsplit('.')[0]}.{suffix}", data
