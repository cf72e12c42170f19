"""The kind of problem that a configuration is about."""

from pathlib import Path
from typing import Any

from gradroute.config.schema import Config
from gradroute.tasks.base import Problem


def build_problem(config: Config, data: Any = None, run: Path | None = None) -> Problem:
    """Everything that a run of this configuration needs; `data`, if it is at hand, is another run's `Problem.data`.

    run: the folder of that very run, if it has begun: what a pretrained model is read back from, untrained.

    Raises: UserError for every mistake in the configuration or the data.
    """
    if config.dataset.text is not None:
        from gradroute.tasks.language import LanguageModelling

        return LanguageModelling(config, data, run)
    if config.model.resnet is not None:
        from gradroute.tasks.classification import Classification

        return Classification(config, data)
    from gradroute.tasks.reconstruction import Reconstruction

    return Reconstruction(config, data)
