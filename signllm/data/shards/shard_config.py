"""The options of sharding a dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from signllm.data.shards.sample_encoding import EncodeConfig
from signllm.errors import UsageError
from signllm.storage import DEFAULT_TIMEOUT_S
from signllm.validation import Limit, NonNegativeFloat, PositiveInt, validated


@validated
class ShardConfig(EncodeConfig):
    """How a dataset becomes shards.

    Args:
        shard_size_mb: size of the samples in megabytes at which a shard is closed.
        max_bad: largest number of samples that may be left out: a number, or a share of all such as "1%".
        split_by: ``dataset`` keeps the splits of the dataset; ``signer`` makes train, dev and test without
            common signers.
        proportions: shares of the samples in train, dev and test for ``split_by signer``; they are
            approximate, because each signer belongs to one split.
        workers: number of encoding processes; 1 encodes in this process. The result does not depend on it.
        show_progress: whether to draw a progress bar on standard error.
        storage_timeout_s: longest wait of a read for unavailable storage in seconds, after which sharding
            ends; 0 does not wait. No sample is left out because of unavailable storage.
    """

    shard_size_mb: Annotated[float, Field(gt=0, le=16_384)] = 512
    max_bad: str = "1%"
    split_by: Literal["dataset", "signer"] = "dataset"
    proportions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.8, 0.1, 0.1)
    workers: PositiveInt = 1
    show_progress: bool = True
    storage_timeout_s: Limit = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a value that cannot work."""
        if not 0 < sum(self.proportions) < 1e6:
            raise UsageError(
                f"proportions = {self.proportions} are not shares",
                where="proportions",
                remedy="give three shares such as 0.8 0.1 0.1",
            )
        self.bad_allowed(100)

    def bad_allowed(self, total: int) -> int:
        """Return how many of ``total`` samples may be left out."""
        text = str(self.max_bad).strip()
        is_share = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not 0 <= number <= (100 if is_share else 1e9):
            raise UsageError(
                f"max_bad = {self.max_bad!r} is not valid",
                where="max_bad",
                remedy='give a share such as "1%" or a number such as 5',
            )
        return int(number / 100 * total if is_share else number)
