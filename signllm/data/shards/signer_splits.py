"""Splits that share no signer, because a model that has seen its test signers is easily overrated.

Each signer is assigned with all samples to one split. The signer with the most samples comes first, and goes
to the split that lacks the most samples of its share. Nothing is random, so a dataset always gives the same
splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from signllm.data.source_samples import Annotations
from signllm.errors import UsageError

SPLITS = ("train", "dev", "test")


def split_by_signer(annotations: Annotations, proportions: Sequence[float]) -> Annotations:
    """Return the annotations with every sample in ``train``, ``dev`` or ``test`` by its signer.

    Args:
        annotations: annotations of a dataset; their own splits are ignored.
        proportions: target shares of the samples in train, dev and test; 0 omits a split.

    Raises:
        UsageError: there are samples without a signer, or fewer signers than splits.
    """
    shares = {name: share for name, share in zip(SPLITS, proportions, strict=True) if share}
    sizes = Counter(sample.signer for sample in annotations.samples)
    if sizes[""]:
        raise UsageError(
            f"{sizes['']} of {len(annotations.samples)} samples name no signer",
            remedy="add a column signer, or keep the dataset's own splits",
        )
    if len(sizes) < len(shares):
        raise UsageError(
            f"{len(sizes)} signers are too few for {len(shares)} splits",
            remedy="set a share of --proportions to 0, or keep the dataset's own splits",
        )
    assigned = _assign_signers(sizes, shares)
    samples = sorted(
        (replace(sample, split=assigned[sample.signer]) for sample in annotations.samples),
        key=lambda sample: SPLITS.index(sample.split),
    )
    return replace(annotations, samples=tuple(samples), official={})


def _assign_signers(sizes: Counter[str], shares: dict[str, float]) -> dict[str, str]:
    """Return the split of each signer.

    Args:
        sizes: number of samples of each signer.
        shares: target share of each split.
    """
    total = sum(sizes.values()) / sum(shares.values())
    lacking = {name: share * total for name, share in shares.items()}
    assigned: dict[str, str] = {}
    for signer in sorted(sizes, key=lambda name: (-sizes[name], name)):
        empty = [name for name in shares if name not in assigned.values()]
        # The last signers go to splits that have none yet, so that no split stays empty.
        candidates = empty if len(sizes) - len(assigned) <= len(empty) else list(shares)
        assigned[signer] = max(candidates, key=lambda name: lacking[name])
        lacking[assigned[signer]] -= sizes[signer]
    return assigned
