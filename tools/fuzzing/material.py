"""What is mutated: small shards, a video in every container, a frame folder, a dataset in every format."""

from __future__ import annotations

import io
import pickle
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.decoding import encode_h264
from signllm.data.video.frame_folder import encode_png

FRAMES, SIDE = 6, 32
VIDEOS = {
    "mp4": ("libx264", "yuv420p"),
    "mkv": ("libx264", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
}
QUIET = ShardConfig(encode="copy", shard_size_mb=0.012, max_bad="100%", show_progress=False)


def drawn(seed: int) -> np.ndarray:
    """Return a bright square that moves over noise: uint8 (T, H, W, 3)."""
    video = np.random.default_rng(seed).integers(20, 60, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    for number, frame in enumerate(video):
        frame[number : number + 10, 2 * number : 2 * number + 10] = 240
    return video


def video(kind: str, seed: int) -> bytes:
    """Return a small video in one of the containers of :data:`VIDEOS`."""
    if kind == "mp4":
        return encode_h264(drawn(seed), 25)
    codec, pixels = VIDEOS[kind]
    target = io.BytesIO()
    name = {"mkv": "matroska"}.get(kind, kind)
    with av.open(target, "w", format=name) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "3"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = pixels
        for frame_HWC in drawn(seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def demanding_mp4(seed: int) -> bytes:
    """Return an mp4 that asks for all that ``data/video/stream.py`` heeds.

    An edit list hides its first two frames, it lies on its side, and its pixels are not square.
    """
    plain, target = io.BytesIO(), io.BytesIO()
    with av.open(plain, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        stream.codec_context.thread_count = 1
        for frame_HWC in drawn(seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    plain.seek(0)
    with av.open(plain) as source, av.open(target, "w", format="mp4") as container:
        copied = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                earlier = round(Fraction(2, 25) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, copied
                container.mux(packet)
    data = target.getvalue()
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">5i", 0, 1 << 16, 0, -1 << 16, 0) + data[at + 20 :]


def write_frames(folder: Path, seed: int, suffix: str) -> None:
    """Write a frame folder of ``.png`` or ``.jpg``."""
    folder.mkdir(parents=True)
    for number, frame_HWC in enumerate(drawn(seed), start=1):
        path = folder / f"images{number:04d}.{suffix}"
        if suffix == "png":
            path.write_bytes(encode_png(frame_HWC))
        else:
            Image.fromarray(frame_HWC).save(path, format="JPEG")


def annotations_of(root: Path) -> Annotations:
    """Return the clips of the shards that :func:`write_material` makes: mp4 files and a frame folder."""
    clips = [
        SourceSample(id=f"c{n}", video=root / f"clip{n}.mp4", text=f"sentence {n}", split="train", signer="s")
        for n in range(4)
    ]
    clips.append(SourceSample(id="f/4", video=root / "clip4", text="frames", split="dev"))
    return Annotations(samples=tuple(clips))


def write_material(root: Path) -> None:
    """Write everything below ``root``: ``clip*``, ``shards``, ``videos`` and ``datasets``."""
    root.mkdir(parents=True)
    for number in range(4):
        (root / f"clip{number}.mp4").write_bytes(video("mp4", number))
    write_frames(root / "clip4", 4, "png")
    write_shards(annotations_of(root), root / "shards", QUIET)
    (root / "videos").mkdir()
    for kind in VIDEOS:
        data = demanding_mp4(7) if kind == "mp4" else video(kind, 7)
        (root / "videos" / f"v.{kind}").write_bytes(data)
    for suffix in ("png", "jpg"):
        write_frames(root / "videos" / suffix, 8, suffix)
    _write_datasets(root / "datasets")


def _write_datasets(root: Path) -> None:
    phoenix = root / "phoenix2014t"
    (phoenix / "annotations/manual").mkdir(parents=True)
    header = "name|video|start|end|speaker|orth|translation\n"
    for split in ("train", "dev"):
        rows = [f"{split}-{n}|{split}-{n}/1/*.png|-1|-1|Signer0{n}|X|es regnet {n}\n" for n in range(2)]
        table = phoenix / f"annotations/manual/PHOENIX-2014-T.{split}.corpus.csv"
        table.write_text(header + "".join(rows))
        for n in range(2):
            write_frames(phoenix / f"features/fullFrame-210x260px/{split}/{split}-{n}", n, "png")
    csl = root / "csl-daily"
    (csl / "sentence_label").mkdir(parents=True)
    names = [f"S00000{n}_P0000_T00" for n in range(3)]
    listed = [f"{name}|{split}\n" for name, split in zip(names, ("train", "dev", "test"), strict=True)]
    (csl / "sentence_label/split_1.txt").write_text("name|split\n" + "".join(listed))
    info = [{"name": name, "label_char": ["今", "天"], "label_gloss": ["天"]} for name in names]
    (csl / "sentence_label/csl2020ct_v2.pkl").write_bytes(pickle.dumps({"info": info}))
    for number, name in enumerate(names):
        write_frames(csl / "sentence/frames_512x512" / name, number, "jpg")
    how = root / "how2sign"
    how.mkdir(parents=True)
    columns = "VIDEO_ID VIDEO_NAME SENTENCE_ID SENTENCE_NAME START_REALIGNED END_REALIGNED SENTENCE"
    rows = ["\t".join(columns.split())]
    rows += [f'v\t-rec\ts{n}\t-rec_{n}-8-rgb_front\t0.0{n}\t0.2\tsay "{n}"' for n in range(3)]
    (how / "how2sign_realigned_train.csv").write_text("\n".join(rows) + "\n")
    (how / "-rec.mp4").write_bytes(video("mp4", 1))
    (how / "-rec_0-8-rgb_front.mp4").write_bytes(video("mp4", 2))
    asl = root / "openasl"
    asl.mkdir()
    rows = ["\t".join("vid yid start end raw-text tokenized-text gloss split".split())]
    rows += [f"r-0{n}\tr\t00:00:00.0{n}0\t00:00:00.200\t a  b{n} \tab\tx\tvalid" for n in range(3)]
    (asl / "openasl-v1.0.tsv").write_text("\n".join(rows) + "\n")
    (asl / "r.mp4").write_bytes(video("mp4", 1))
    for kind, head, row in (
        ("tsv", "video\ttext\tid\tstart_s\tend_s", "{0}\tsay {1}\tt{1}\t0.0{1}\t0.2"),
        ("csv", "video,text,id,start_s,end_s", '{0},"say, {1}",t{1},0.0{1},0.2'),
        ("jsonl", "", '{{"video": "{0}", "text": "say {1}", "id": "t{1}", "start_s": 0.0{1}, "end_s": 0.2}}'),
    ):
        table = root / f"table-{kind}"
        table.mkdir()
        (table / "v.mkv").write_bytes(video("mkv", 1))
        lines = [head] if head else []
        lines += [row.format("v.mkv", n) for n in range(3)]
        (table / f"t.{kind}").write_text("\n".join(lines) + "\n")
    folder = root / "folder"
    (folder / "dev").mkdir(parents=True)
    for name in ("a", "dev/b"):
        (folder / f"{name}.mp4").write_bytes(video("mp4", 3))
        (folder / f"{name}.txt").write_text("a sentence\n")
