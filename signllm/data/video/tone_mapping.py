"""Tone mapping of high dynamic range video (10-bit HLG and PQ, as phones record it) to standard range.

The steps are those of ITU-R BT.2100 and BT.2390. The signal is converted to light in cd/m² (the light of a
display of 1000 cd/m²), its BT.2020 colors to those of BT.709; highlights above a knee are compressed, and
the result is coded for a display of gamma 2.4 (BT.1886). White paper, 203 cd/m² (BT.2408), becomes nearly
white. FFmpeg's own filters need the zimg library, which the FFmpeg in PyAV lacks.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273."""
TRANSFER_NAMES = {PQ: "PQ", HLG: "HLG"}
_WHITE, _PEAK = 203.0, 1000.0
"""Luminance in cd/m² of white paper, and of the brightest light that is distinguished."""
_KNEE = 0.6
"""Share of the luminance of white paper up to which light is not compressed."""
_LUMA_2020 = (0.2627, 0.6780, 0.0593)
_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
"""Matrix from linear light in BT.2020 colors to BT.709 colors (ITU-R BT.2087)."""


def is_high_dynamic_range(frame: Any) -> bool:
    """Return whether a PyAV frame has high dynamic range (PQ or HLG)."""
    return frame.color_trc in TRANSFER_NAMES


def map_tones(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Return a picture of high dynamic range converted to standard range.

    Args:
        picture: coded R'G'B', uint16 (H, W, 3).
        transfer: transfer characteristics, ``PQ`` or ``HLG``.
        primaries: color primaries of ITU-T H.273; 1 is BT.709, every other value is treated as BT.2020.

    Returns:
        R'G'B', uint8 (H, W, 3).
    """
    import numpy as np

    light_HWC = _light_table(transfer)[picture]
    if transfer == HLG:  # light of the scene becomes light of the display: gamma 1.2 on the luminance
        luminance_HW1 = light_HWC @ np.array(_LUMA_2020, np.float32)[:, None]
        light_HWC = light_HWC * np.maximum(luminance_HW1, 1e-6) ** np.float32(0.2)
    light_HWC = light_HWC * np.float32(_PEAK / _WHITE)
    if primaries != 1:
        light_HWC = np.maximum(light_HWC @ np.array(_TO_BT709, np.float32).T, 0)
    brightest_HW1 = light_HWC.max(axis=2, keepdims=True)
    light_HWC = light_HWC * (_compress_highlights(brightest_HW1) / np.maximum(brightest_HW1, 1e-6))
    coded_HWC = np.clip(light_HWC, 0, 1) ** np.float32(1 / 2.4)
    return np.asarray((255 * coded_HWC + 0.5).astype(np.uint8))


@cache
def _light_table(transfer: int) -> np.ndarray:
    """Return the light of each 16-bit code as a share of the peak, float32 (65536,)."""
    import numpy as np

    code = np.arange(1 << 16) / ((1 << 16) - 1)
    if transfer == PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        light = 10_000 / _PEAK * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:  # ARIB STD-B67 gives the light of the scene
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return np.minimum(light, 1).astype(np.float32)


def _compress_highlights(light: np.ndarray) -> np.ndarray:
    """Compress light above the knee by a Möbius transformation with a smooth start; the peak becomes 1."""
    import numpy as np

    peak, knee = _PEAK / _WHITE, _KNEE
    a = -knee * knee * (peak - 1) / (knee * knee - 2 * knee + peak)
    b = (knee * knee - 2 * knee * peak + peak) / (peak - 1)
    scale = (b * b + 2 * b * knee + knee * knee) / (b - a)
    return np.asarray(np.where(light <= knee, light, scale * (light + a) / (light + b)), light.dtype)
