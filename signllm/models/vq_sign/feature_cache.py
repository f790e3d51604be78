"""A cache on disk of the feature maps of a frozen backbone, shared by all ranks, epochs and stages.

A frozen backbone computes the same maps from the same frames in every epoch, in every stage and on every
rank. If the environment variable ``SIGNLLM_FEATURE_CACHE`` names a folder, the maps of each video are
computed once and read from there afterwards. The demo uses it, because the backbone is most of the work of
its epochs. The name of a file is the sha256 of everything that determines its content (the frames, the
weights, the preparation of the pixels), so augmented frames, other weights and other settings have files of
their own. The cost is disk space: C x h x w floats for each frame.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

VARIABLE = "SIGNLLM_FEATURE_CACHE"
log = logging.getLogger(__name__)


class FeatureCache:
    """Feature maps of videos, stored under a digest of everything they are computed from.

    Args:
        folder: folder of the files; it is created when the first video is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_writable = True

    def maps(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the maps (T, C, h, w) stored under ``key``; compute and store them if there are none.

        Computed and stored maps are bit-identical.
        """
        path = self.folder / key[:2] / f"{key}.npy"
        with suppress(OSError, EOFError, ValueError):  # the file does not exist or is damaged
            return torch.from_numpy(np.load(path, allow_pickle=False)).permute(0, 3, 1, 2)
        maps_TCHW = compute().contiguous(memory_format=torch.channels_last)
        self._store(path, maps_TCHW.permute(0, 2, 3, 1).numpy())
        return maps_TCHW

    def _store(self, path: Path, maps_THWC: np.ndarray) -> None:
        """Write a file under a temporary name and rename it, so that no reader sees an unfinished file."""
        if not self._is_writable:
            return
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                np.save(file, maps_THWC)
            unfinished.replace(path)
        except OSError as error:  # a full disk must not end the run; it only loses time
            self._is_writable = False
            log.warning("feature maps are no longer stored in %s: %s", self.folder, error.strerror)
            with suppress(OSError):
                unfinished.unlink()


def feature_cache() -> FeatureCache | None:
    """Return the cache in the folder that ``SIGNLLM_FEATURE_CACHE`` names; None if it is not set."""
    folder = os.environ.get(VARIABLE)
    return FeatureCache(Path(folder)) if folder else None


def content_key(frames: Tensor, weights: str) -> str:
    """Return the key of a video's feature maps.

    Args:
        frames: (T, 3, H, W) frames of the video as the encoder receives them.
        weights: result of :func:`weights_key` for the backbone.
    """
    description = f"{weights} {frames.dtype} {tuple(frames.shape)}"
    pixels_THWC = frames.permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.sha256(description.encode() + pixels_THWC.tobytes()).hexdigest()


def weights_key(backbone: nn.Module, preparation: str) -> str:
    """Return a digest of a backbone's weights and of ``preparation``, a description of the pixel pipeline."""
    digest = hashlib.sha256(preparation.encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
