"""Mutations by kind: each changes a copy of the material, and names the functions that read it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzzing.probes import Probe, of_dataset, of_shards, of_video

Mutation = Callable[[random.Random, Path, Path], Iterator[tuple[str, Probe]]]
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 10**400, -0.5, 1e308, float("nan"), float("inf"), "", "9",
    "NaN", "../../etc/passwd", "/etc/passwd", "../x.tar", "a\0b", "\ud800", "x" * 5000, [], {}, [[]],
    {"a": 1}, [-1, 10], [0, 2**60], [5, -5], [1e3, 2], ["0", "9"], [0, 512, 1],
)  # fmt: skip
"""What no manifest, index or table of ours holds."""
NAMES = (
    "../x.txt",
    "../../escape.mp4",
    "/tmp/absolute.mp4",
    "c0.",
    ".mp4",
    "c0",
    "a\\b.mp4",
    "é.txt",
    "x" * 99,
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Flip, overwrite, cut out, insert or cut off, at random places or near one end."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 10, 50))):
        if len(changed) < 2:
            break
        low, high = chance.choice(
            ((0, len(changed)), (0, min(200, len(changed))), (len(changed) // 2, len(changed)))
        )
        place = chance.randrange(low, high)
        match chance.randrange(5):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                changed[place : place + 4] = bytes([chance.choice((0, 0x7F, 0x80, 0xFF))]) * 4
            case 2:
                del changed[place : place + chance.randrange(1, 30)]
            case 3:
                changed[place:place] = chance.randbytes(chance.randrange(1, 9))
            case _ if chance.random() < 0.3:
                del changed[place:]
    return bytes(changed)


# --- shards -----------------------------------------------------------------------------------------------


def _shards(material: Path, case: Path) -> Path:
    return Path(shutil.copytree(material / "shards", case / "shards"))


def _sealed(folder: Path, tar: Path, samples: Callable[[list[Any]], list[Any]] | None = None) -> None:
    """Update index and manifest to the changed tar, as an attacker would who wants it to be read."""
    sidecar_path = tar.with_suffix(".json")
    sidecar, manifest = (
        json.loads(sidecar_path.read_bytes()),
        json.loads((folder / "manifest.json").read_bytes()),
    )
    data = tar.read_bytes()
    facts = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sidecar |= facts
    if samples:
        sidecar["samples"] = samples(sidecar["samples"])
    sidecar_path.write_text(json.dumps(sidecar))
    for split in manifest["splits"].values():
        for entry in split["shards"]:
            if entry["tar"] == tar.name:
                entry |= facts
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _tar_bytes(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    folder = _shards(material, case)
    tar = chance.choice(sorted(folder.glob("*.tar")))
    tar.write_bytes(damaged(tar.read_bytes(), chance))
    if chance.random() < 0.7:
        _sealed(folder, tar)
    return of_shards(folder, material)


def _tar_sizes(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    """Absurd sizes in the header of a member, its checksum made right; also pax and GNU headers."""
    folder = _shards(material, case)
    tar = chance.choice(sorted(folder.glob("*.tar")))
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as opened:
        at = chance.choice(opened.getmembers()).offset
    size = chance.choice(
        (
            b"77777777777\0",
            b"\x80" + b"\xff" * 11,
            b"\xff" * 12,
            b"\xff" * 10 + b"\xfe\0",
            b"00000000000\0",
            b"-0000000512\0",
        )
    )
    data[at + 124 : at + 136] = size
    data[at + 156 : at + 157] = chance.choice((b"0", b"0", b"x", b"g", b"L", b"K", b"S", b"X", b"7", b"5"))
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tar.write_bytes(data)
    _sealed(folder, tar)
    return of_shards(folder, material)


def _tar_members(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    """Members reordered, renamed, doubled, dropped, or turned into links, devices and pipes."""
    folder = _shards(material, case)
    tar = chance.choice(sorted(folder.glob("*.tar")))
    with tarfile.open(tar) as opened:
        members = [(member, opened.extractfile(member).read()) for member in opened]  # type: ignore[union-attr]
    place = chance.randrange(len(members))
    member, content = members[place]
    match chance.randrange(6):
        case 0:
            chance.shuffle(members)
        case 1:
            member.name = chance.choice(NAMES)
        case 2:
            members.insert(chance.randrange(len(members)), (member, content))
        case 3:
            del members[place]
        case 4:
            members[place] = (member, chance.choice((b"", b"{}", b"\xff\xfe", b"[" * 99_999, bomb(chance))))
        case _:
            types = (
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.BLKTYPE,
                tarfile.FIFOTYPE,
                tarfile.DIRTYPE,
            )
            member.type, member.linkname = (
                chance.choice(types),
                chance.choice(("/etc/passwd", "../../x", member.name)),
            )
            members[place] = (member, b"")
    with tarfile.open(tar, "w", format=chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as written:
        for member, content in members:
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    positions: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            key, _, extension = member.name.partition(".")
            positions.setdefault(key, {})[extension] = [member.offset_data, member.size]
    _sealed(
        folder, tar, lambda samples: [s | {"members": positions.get(s["key"], s["members"])} for s in samples]
    )
    return of_shards(folder, material)


def _json_values(name: str) -> Mutation:
    def mutation(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
        folder = _shards(material, case)
        path = (
            folder / "manifest.json" if name == "manifest" else chance.choice(sorted(folder.glob("*-*.json")))
        )
        value = json.loads(path.read_bytes())
        for _ in range(chance.choice((1, 1, 2))):
            places = list(_places(value))
            holder, key = chance.choice(places)
            match chance.randrange(5):
                case 0 if isinstance(holder, dict):
                    holder[chance.choice(NAMES)] = holder.pop(key)
                case 1:
                    del holder[key]
                case 2 if isinstance(holder, list):
                    holder.insert(0, holder[key])
                case _:
                    holder[key] = chance.choice(NASTY)
        path.write_text(json.dumps(value))
        return of_shards(folder, material)

    return mutation


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _json_bytes(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    folder = _shards(material, case)
    path = chance.choice(sorted(folder.glob("*.json")))
    deep = (
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b"[" * 900 + b"]" * 900,
        b"",
        b"null",
        b"\xff\xfe{",
        b"1" * 9000,
    )
    path.write_bytes(chance.choice(deep) if chance.random() < 0.3 else damaged(path.read_bytes(), chance))
    return of_shards(folder, material)


def _spans(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    """Offsets and sizes of the index that lead elsewhere, and numbers of frames that are not so."""
    folder = _shards(material, case)
    path = chance.choice(sorted(folder.glob("*-*.json")))
    value = json.loads(path.read_bytes())
    sample = chance.choice(value["samples"])
    span = sample["members"][chance.choice(sorted(sample["members"]))]
    span[chance.randrange(2)] = chance.choice(
        (0, 1, 511, -512, 2**40, 2**62, 2**64, value["size_bytes"], "7", None)
    )
    if chance.random() < 0.5:
        sample[chance.choice(("frames", "fps", "width", "height"))] = chance.choice(
            (0, 1, 10**9, 10**30, -3, 1e-300)
        )
    path.write_text(json.dumps(value))
    return of_shards(folder, material)


# --- videos -----------------------------------------------------------------------------------------------


def _video_bytes(kind: str) -> Mutation:
    def mutation(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
        path = case / f"v.{kind}"
        path.write_bytes(damaged((material / "videos" / f"v.{kind}").read_bytes(), chance))
        return of_video(path)

    return mutation


def png_of(width: int, height: int, rows: int) -> bytes:
    """Return a black PNG that declares a size and holds so many rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (width + 1) * rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb(chance: random.Random) -> bytes:
    """Return a picture or a video that declares far more than it is."""
    gif = b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + b"\0\x02\x02\x4c\x01\0;"
    return chance.choice(
        (png_of(100_000, 100_000, 1), png_of(30_000, 30_000, 9), png_of(6_000, 6_000, 6_000), gif + frame)
    )


def _declared(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    """100,000 x 100,000 pixels, 10^9 frames, rates of zero and of millions, as each container writes them."""
    kind = chance.choice(("mp4", "mkv", "avi", "gif"))
    data = bytearray((material / "videos" / f"v.{kind}").read_bytes())
    huge = chance.choice((0, 1, 65_535, 100_000, 10**9, 2**31 - 1, 2**32 - 1))
    small = min(huge, 65_535)

    def put(mark: bytes, offset: int, layout: str, value: int) -> None:
        if (at := data.find(mark)) >= 0 and at + offset + struct.calcsize(layout) <= len(data):
            struct.pack_into(layout, data, at + offset, value)

    match kind:
        case "mp4":
            where = (
                ("stts", 12, ">I"),
                ("stts", 16, ">I"),
                ("stsz", 12, ">I"),
                ("mdhd", 16, ">I"),
                ("mdhd", 20, ">I"),
            )
            name, offset, layout = chance.choice(
                (*where, ("avc1", 28, ">H"), ("tkhd", 80, ">I"), ("ctts", 12, ">I"))
            )
            put(name.encode(), offset, layout, small if layout == ">H" else huge)
            if name == "avc1":
                put(b"avc1", 30, ">H", small)
        case "avi":
            name, offset = chance.choice(
                (
                    ("avih", 8),
                    ("avih", 24),
                    ("avih", 40),
                    ("strh", 28),
                    ("strh", 32),
                    ("strh", 40),
                    ("strf", 12),
                )
            )
            put(name.encode(), offset, "<I", huge)
            if chance.random() < 0.5:
                put(b"strf", 16, "<I", huge)
        case "mkv":
            mark = chance.choice((b"\xb0\x81", b"\xba\x81", b"\x23\xe3\x83\x84", b"\x2a\xd7\xb1\x83"))
            put(mark, len(mark), ">B" if len(mark) == 2 else ">I", min(huge, 255) if len(mark) == 2 else huge)
        case _:
            data[6:10] = struct.pack("<HH", small, small)
            if (at := data.find(b",\0\0\0\0")) > 0 and chance.random() < 0.7:
                data[at + 5 : at + 9] = struct.pack("<HH", small, small)
    path = case / f"v.{kind}"
    path.write_bytes(bytes(data))
    return of_video(path)


def _frame_folders(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
    suffix = chance.choice(("png", "jpg"))
    folder = Path(shutil.copytree(material / "videos" / suffix, case / "frames"))
    frame = chance.choice(sorted(folder.iterdir()))
    match chance.randrange(8):
        case 0:
            frame.write_bytes(b"")
        case 1:
            frame.write_bytes(bomb(chance))
        case 2:
            frame.unlink()
            frame.mkdir()
        case 3:
            frame.unlink()
            os.mkfifo(frame)
        case 4:
            frame.unlink()
            frame.symlink_to(chance.choice(("/dev/zero", frame.name, "/etc/passwd", "../gone.png")))
        case 5 if suffix == "jpg":
            data = bytearray(frame.read_bytes())
            at = data.find(b"\xff\xc0")
            data[at + 5 : at + 9] = struct.pack(
                ">HH", *(chance.choice((0, 1, 9_000, 65_535)) for _ in range(2))
            )
            frame.write_bytes(bytes(data))
        case 6:
            for other in folder.iterdir():
                other.unlink()
        case _:
            frame.write_bytes(damaged(frame.read_bytes(), chance))
    return of_video(folder)


# --- datasets ---------------------------------------------------------------------------------------------

_TABLES = {
    "phoenix2014t": "annotations/manual/PHOENIX-2014-T.*.corpus.csv",
    "csl-daily": "sentence_label/*",
    "how2sign": "*.csv",
    "openasl": "*.tsv",
    "table-tsv": "t.tsv",
    "table-csv": "t.csv",
    "table-jsonl": "t.jsonl",
    "folder": "**/*.txt",
}
_FIELDS = (
    b"../../../etc/passwd", b"/etc/passwd", b"a\0b", b"\xff\xfe\xfd", b'"', b"x" * 300, b"y" * 140_000, b"-1",
    b"nan", b"1e300", b"inf", b"99:99:99", b"\xed\xa0\x80", b"", b"train/../x", b"\r", b"\n", b"\t", b"|",
    b'"\\ud800"', b"[" * 60_000,
)  # fmt: skip
_PICKLES = (
    b"\x80\x04}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    b"\x80\x04]" + b"]" * 300_000 + b"a" * 300_000 + b".",
    b"\x80\x04cos\nsystem\nX\x02\0\0\0id\x85R.",
    b"\x80\x04}X\x04\0\0\0info](}(X\x04\0\0\0nameX\x01\0\0\0aX\n\0\0\0label_char]q\0"
    + b"(h\0h\0eq\0" * 40
    + b"uae.",
    b"\x80\x04X\xff\xff\xff\x7fabc.",
    b"\x80\x04I" + b"9" * 6000 + b"\n.",
    b"\x80\x04}q\0X\x04\0\0\0infoh\0s.",
)


def _datasets(name: str) -> Mutation:
    def mutation(chance: random.Random, material: Path, case: Path) -> Iterator[tuple[str, Probe]]:
        src = Path(shutil.copytree(material / "datasets" / name, case / "in"))
        table = chance.choice(sorted(src.glob(_TABLES[name])))
        data = table.read_bytes()
        kind = chance.randrange(4)
        if table.suffix == ".pkl" and kind == 0:
            table.write_bytes(chance.choice(_PICKLES))
        elif kind <= 1 and len(data) > 1:
            fields = [at for at, byte in enumerate(data) if byte in b"\t|,:\n "] or [0]
            begin = chance.choice(fields) + 1
            end = next((at for at in fields if at > begin), begin)
            table.write_bytes(data[:begin] + chance.choice(_FIELDS) + data[end:])
        elif kind == 2 and chance.random() < 0.5:
            (src / "round").symlink_to(src)
            (src / "again").symlink_to(src)
            if videos := sorted(path for path in src.rglob("*.m*") if path.is_file()):
                video = chance.choice(videos)
                video.unlink()
                os.mkfifo(video)
        else:
            table.write_bytes(damaged(data, chance))
        if name.startswith("table-"):
            return of_dataset("table", table, case / "out")
        return of_dataset(name, src, case / "out")

    return mutation


KINDS: dict[str, Mutation] = {
    "shards: tar, bytes": _tar_bytes,
    "shards: tar, declared sizes": _tar_sizes,
    "shards: tar, members": _tar_members,
    "shards: index, values": _json_values("index"),
    "shards: index, spans": _spans,
    "shards: manifest, values": _json_values("manifest"),
    "shards: json, bytes": _json_bytes,
    **{f"video: {kind}, bytes": _video_bytes(kind) for kind in ("mp4", "mkv", "avi", "gif")},
    "video: declared sizes": _declared,
    "video: frame folder": _frame_folders,
    **{f"dataset: {name}": _datasets(name) for name in _TABLES},
}
"""Kind → mutation; number n of a run is of kind n mod their number."""
