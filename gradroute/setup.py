"""The kind of problem that a configuration is about."""

from typing import Any

from gradroute.problem import Problem
from gradroute.schema import Config


def build_problem(config: Config, data: Any = None) -> Problem:
    """Everything that a run of this configuration needs; `data`, if it is at hand, is another run's `Problem.data`.

    Raises: UserError for every mistake in the configuration or the data.
    """
    if config.model.transformer is not None:
        from gradroute.language import LanguageModelling

        return LanguageModelling(config, data)
    from gradroute.reconstruction import Reconstruction

    return Reconstruction(config, data)
