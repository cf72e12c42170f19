"""The contract of a data set: its constructor's arguments are its configuration, `load` reads it."""

from abc import ABC, abstractmethod
from typing import Any


class Dataset(ABC):
    """A data set of a run. Subclass `ImageDataset` or `TextDataset`, which say what a data set has to give."""

    @abstractmethod
    def tensors(self, train_limit: int | None, test_limit: int | None, **supplied: Any) -> Any:
        """The data that a task takes; a limit keeps the first data points only."""
