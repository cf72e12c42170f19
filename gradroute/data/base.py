"""The interface of a data set: the constructor's arguments are its configuration, `tensors` reads the data."""

from abc import ABC, abstractmethod
from typing import Any


class Dataset(ABC):
    """A data set of a run. Subclass `ImageDataset` or `TextDataset`, which say what to define."""

    @abstractmethod
    def tensors(self, train_limit: int | None, test_limit: int | None, **supplied: Any) -> Any:
        """Return the data in the form that a task takes; a limit keeps only the first data points."""
