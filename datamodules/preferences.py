"""Preference pairs for rationalization and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from rationalrewards.components.records import Preference
from torch.utils.data import DataLoader

from .batches import Batch
from .readers import read_preferences


class PreferenceDataModule(LightningDataModule):
    """Batches of :class:`~rationalrewards.components.records.Preference`.

    Args:
        paths: Files that ``read_preferences`` reads: our records as JSONL or parquet, ranked images, or edits.
        batch_size: Pairs per batch.
        limit: Take only the first so many pairs.
        decided_only: Leave out ties (used for evaluation on decided pairs).
    """

    def __init__(
        self, paths: str | list[str], batch_size: int = 64, limit: int | None = None, decided_only: bool = False
    ) -> None:
        super().__init__()
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.batch_size = batch_size
        self.limit = limit
        self.decided_only = decided_only
        self.pairs: list[Preference] = []

    def setup(self, stage: str) -> None:
        """Read all files.

        Raises:
            ValueError: If there are no pairs, or two files share an id.
        """
        if not self.pairs:
            pairs: list[Preference] = []
            found: dict[str, str] = {}
            for path in self.paths:
                for pair in read_preferences(Path(path)):
                    if found.setdefault(pair.id, path) != path:
                        raise ValueError(
                            f"id {pair.id!r} is in {found[pair.id]} and in {path}; ids name pairs in ledgers and results: rename it in one"
                        )
                    pairs.append(pair)
            self.pairs = [pair for pair in pairs if not (self.decided_only and pair.winner == "tie")][: self.limit]
            if not self.pairs:
                raise ValueError(f"{', '.join(self.paths)}: no pairs" + (" without a tie" if self.decided_only else ""))

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.pairs, batch_size=self.batch_size, collate_fn=Batch, shuffle=False)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Any]:
        """All pairs, in file order."""
        return self._loader()

    def test_dataloader(self) -> DataLoader[Any]:
        """All pairs, in file order."""
        return self._loader()
