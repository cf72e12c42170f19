"""The Python interface: make a run as the command line does, and open a finished run in a notebook."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.config.compose import configuration
from gradroute.config.identity import one_by_seed
from gradroute.errors import UserError
from gradroute.records import run_reader
from gradroute.records.tables import read_ledger, read_metrics, read_summary

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gradroute.tasks.loading import LoadedRun


class FinishedRun:
    """A finished run in its folder. Each file is read and checked on first access.

    Raises: UserError if the folder is not a finished run, or a file in it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], run_code: bool = False) -> None:
        """`run_code`: whether to build a model whose code is not part of gradroute."""
        self.path, self._run_code = Path(path), run_code
        self.manifest = run_reader.read_manifest(self.path)
        if self.manifest["state"] != "finished":
            raise UserError(f"{path}: the run is not finished (state: {run_reader.state(self.path, self.manifest)})")

    def __repr__(self) -> str:
        return f"FinishedRun('{self.path}')"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the error of each head on each group."""
        table = self.summary.pivot_table("value", ["metric", "head", "region"], "group", sort=False)
        return str(table.to_html(float_format="{:.4f}".format))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as nested plain data."""
        return run_reader.read_mapping(self.path, self.manifest)

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """All measurements: step, split, group, head, region, metric, unit and value."""
        import pandas as pd

        return pd.DataFrame(read_metrics(self.path, self.manifest))

    @cached_property
    def ledger(self) -> "pd.DataFrame":
        """The ledger: points, gradients and parameter changes, by window of updates, group and region."""
        import pandas as pd

        return pd.DataFrame(read_ledger(self.path, self.manifest))

    @cached_property
    def summary(self) -> "pd.DataFrame":
        """The last measurements of each group: group, head, region, metric, unit and value."""
        import pandas as pd

        return pd.DataFrame(read_summary(self.path, self.manifest))

    @cached_property
    def _loaded(self) -> "LoadedRun":
        from gradroute.tasks.loading import load

        return load(self.path, self._run_code)

    @property
    def model(self) -> "nn.Module":
        """The trained model, in evaluation mode, on the CPU."""
        return self._loaded.model

    @property
    def certificates(self) -> "nn.ModuleDict":
        """The trained certificates by region, in evaluation mode, on the CPU."""
        return self._loaded.certificates

    @property
    def report(self) -> Path:
        """The path of the run's page. Raises: UserError if the run wrote none."""
        if "report.html" not in self.manifest["files"]:
            raise UserError(f"{self.path}: has no report; add report to steps")
        return self.path / "report.html"


def run(*overrides: str, config_dir: str | os.PathLike[str] | None = None, quiet: bool = False) -> FinishedRun:
    """Make a run as `gradroute-run` does with the same overrides.

        run = gradroute.run("experiment=mnist_split", "trainer=smoke")

    Args:
        config_dir: a folder of your own configurations, with the code that they name beside it.
        quiet: print nothing.

    Raises: UserError for a mistake in the overrides, or the exception that ended the run.
    """
    from gradroute.running.exit_status import mistake_of
    from gradroute.running.runner import execute
    from gradroute.search.automatic import settled

    say = (lambda text: None) if quiet else print
    try:
        configs = one_by_seed(configuration(overrides, Path(config_dir) if config_dir is not None else None))
    except Exception as error:
        if (mistake := mistake_of(error)) is None:
            raise
        raise mistake from None  # not after Hydra's own errors, which are a page of tracebacks
    if len(configs) != 1:
        raise UserError(f"seeds={len(configs)}: gradroute.run makes one run; call it once for each seed")
    (outcome,) = execute(
        [settled(config, say) for config in configs], watch=(lambda step, rows: None) if quiet else None
    )
    if isinstance(outcome, Exception):
        raise outcome
    return FinishedRun(outcome, run_code=True)


def open_run(path: str | os.PathLike[str], run_code: bool = False) -> FinishedRun:
    """Open a finished run. Code that it names is not executed, unless `run_code` allows it for its model."""
    return FinishedRun(path, run_code)
