"""The recipe's `data` block: where the examples are and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distillctl.recipe.strict import Share, Strict


class SplitFiles(Strict):
    """A file per split."""

    train: str
    """The teacher answers these, and the student learns from the right ones."""
    dev: str
    """Thresholds and checkpoints are chosen on these."""
    test: str
    """Measured once, at the end; never trained on and never chosen on."""


class SplitShares(Strict):
    """Shares of one file; which row goes where is decided by a hash of its content, per label."""

    train: Share = 0.6
    """Share that the teacher answers and the student learns from."""
    dev: Share = 0.15
    """Share on which thresholds and checkpoints are chosen."""
    test: Share = 0.25
    """Share that is measured at the end; never trained on and never chosen on."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed gives another split."""

    @model_validator(mode="after")
    def _whole(self) -> SplitShares:
        if abs(self.train + self.dev + self.test - 1) > 1e-6:
            raise ValueError(f"train + dev + test must be 1, they are {self.train + self.dev + self.test:g}; "
                             "for example {train: 0.6, dev: 0.15, test: 0.25}")
        if min(self.train, self.test) <= 0:
            raise ValueError("train and test must be above 0; nothing is learnt or measured without")
        return self


class DataSpec(Strict):
    """Where the examples are."""

    examples: str | SplitFiles
    """A JSONL, CSV or Parquet file, or one per split."""
    expected: str | dict[str, str] | None = None
    """The field with the gold answer; for `structured` and `text` a mapping of answer field (or `text`,
    `must_include`, `must_not_include`) to the field that holds it. Absent: no gold answers exist."""
    id: str | None = None
    """The field with a row's id; without it `id` where every row has one, else a hash of the row."""
    group: str | None = None
    """Rows with the same value here stay in one split (a conversation, a customer)."""
    split: SplitShares | str = SplitShares()
    """Shares, or the path of a JSON file {"train": [ids], "dev": [ids], "test": [ids]}."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Jaccard similarity of inputs (word 3-shingles) from which two rows in different splits are a leak."""
    pii: Literal["off", "warn", "refuse"] = "off"
    """Look for personal data (e-mail addresses, phone numbers, cards, ...) in what prompts show and in
    recorded answers before any of it leaves this machine; needs the extra `pii`. warn: name the places, and
    go on; refuse: stop. `predict` and `serve` look at each prompt for a hosted student or a cascade's
    teacher, and refuse keeps back that prompt alone. Names and postal addresses are not found."""
