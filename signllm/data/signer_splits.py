"""Splits in which no signer stands twice: a model that knows its test signers is easily overrated.

Whole signers are dealt out, the one with most clips first, each to the split that lacks most clips of its
share. Nothing is drawn, so the same dataset always gives the same splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from signllm.data.source_samples import Annotations
from signllm.errors import UsageError

SPLITS = ("train", "dev", "test")


def split_by_signer(annotations: Annotations, proportions: Sequence[float]) -> Annotations:
    """Return the annotations with every clip in ``train``, ``dev`` or ``test`` by its signer.

    Args:
        annotations: of a dataset; their own splits are dropped.
        proportions: share of the clips wanted in train, dev and test; 0 leaves a split out.

    Raises:
        UsageError: clips without a signer, or fewer signers than splits.
    """
    wanted = {name: share for name, share in zip(SPLITS, proportions, strict=True) if share}
    sizes = Counter(clip.signer for clip in annotations.samples)
    if sizes[""]:
        raise UsageError(
            f"{sizes['']} of {len(annotations.samples)} clips name no signer",
            remedy="add a column signer, or keep the dataset's own splits",
        )
    if len(sizes) < len(wanted):
        raise UsageError(
            f"{len(sizes)} signers for {len(wanted)} splits",
            remedy="set a share of --proportions to 0, or keep the dataset's own splits",
        )
    dealt = _assign_signers(sizes, wanted)
    clips = sorted(
        (replace(clip, split=dealt[clip.signer]) for clip in annotations.samples),
        key=lambda clip: SPLITS.index(clip.split),
    )
    return replace(annotations, samples=tuple(clips), official={})


def _assign_signers(sizes: Counter[str], wanted: dict[str, float]) -> dict[str, str]:
    """Return signer → split."""
    total = sum(sizes.values()) / sum(wanted.values())
    lacking = {name: share * total for name, share in wanted.items()}
    dealt: dict[str, str] = {}
    for signer in sorted(sizes, key=lambda name: (-sizes[name], name)):
        empty = [name for name in wanted if name not in dealt.values()]
        open_to = empty if len(sizes) - len(dealt) <= len(empty) else list(wanted)
        dealt[signer] = max(open_to, key=lambda name: lacking[name])
        lacking[dealt[signer]] -= sizes[signer]
    return dealt
