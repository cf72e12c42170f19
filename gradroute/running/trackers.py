"""Experiment trackers, which add to a run folder's own records through their libraries' clients; off by default."""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from gradroute.config.identity import flat, to_mapping
from gradroute.config.limits import Text
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.errors import UserError, first_line
from gradroute.steps.base import RunState


class Tracker(ABC):
    """Base class of trackers, which also record a run's configuration and measurements.

    The constructor's arguments are the keys of `tracker:`.

    Raises: UserError if its package is not installed, before anything is trained.
    """

    sends_to = ""
    """The server that receives the records, if any; the user must agree to one that only a run folder names."""

    @abstractmethod
    def begin(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        """Start to track a run in a folder, or to track a resumed one; `config` has dotted keys."""

    @abstractmethod
    def log(self, step: int, name: str, value: float) -> None:
        """Record a measurement at an update."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Record that the run ended, and the error that ended it, if any."""


def package(name: str, extra: str) -> ModuleType:
    """Import a tracker's package. Raises: UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        right = f"use pip install 'gradroute[{extra}]'"
        raise UserError(f"tracker={extra}: needs the package {extra} ({error}); {right}") from None


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self) -> None:
        package("tensorboard", "tensorboard")
        self.writer = package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.file: Any = None

    def begin(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:  # noqa: D102
        self.file = self.writer(str(folder / "tensorboard"))
        table = "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in config.items())])
        self.file.add_text("config", table)

    def log(self, step: int, name: str, value: float) -> None:  # noqa: D102
        self.file.add_scalar(name, value, step)

    def end(self, error: BaseException | None) -> None:  # noqa: D102
        self.file.close()


class MLflow(Tracker):
    """A run of MLflow.

    Args:
        uri: the tracking server or a folder; null for that of MLflow's own environment variables.
        experiment: its name; null for the run's.
    """

    def __init__(
        self, uri: Annotated[str | None, Text("a folder or an address")] = None,
        experiment: Annotated[str | None, Text("a name")] = None,
    ) -> None:  # fmt: skip
        self.mlflow, self.uri, self.experiment = package("mlflow", "mlflow"), uri, experiment
        self.client: Any = None
        self.run_id, self.sends_to = "", uri or ""

    def begin(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:  # noqa: D102
        self.client = self.mlflow.MlflowClient(tracking_uri=self.uri)
        name = self.experiment or str(config["name"])
        found = self.client.get_experiment_by_name(name)
        number = found.experiment_id if found else self.client.create_experiment(name)
        self.run_id = self.client.create_run(number, run_name=folder.name, tags={"folder": str(folder)}).info.run_id
        for key, value in config.items():
            self.client.log_param(self.run_id, _plain_name(key), str(value)[:500])

    def log(self, step: int, name: str, value: float) -> None:  # noqa: D102
        self.client.log_metric(self.run_id, _plain_name(name), value, step=step)

    def end(self, error: BaseException | None) -> None:  # noqa: D102
        self.client.set_terminated(self.run_id, "FINISHED" if error is None else "FAILED")


class Wandb(Tracker):
    """A run of Weights & Biases.

    Args:
        project: its name. mode: `offline` writes only to the folder of the experiment, `online` also to the server.
    """

    def __init__(
        self, project: Annotated[str, Text("a name")] = "gradroute", mode: Literal["offline", "online"] = "offline"
    ) -> None:
        self.wandb, self.project, self.mode = package("wandb", "wandb"), project, mode
        self.sends_to = "the server of Weights & Biases" if mode == "online" else ""
        self.run: Any = None

    def begin(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:  # noqa: D102
        self.run = self.wandb.init(
            project=self.project, mode=self.mode, name=folder.name, dir=str(folder.parent), config=dict(config),
            reinit=True, settings=self.wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="update")

    def log(self, step: int, name: str, value: float) -> None:  # noqa: D102
        self.run.log({name: value, "update": step})

    def end(self, error: BaseException | None) -> None:  # noqa: D102
        self.run.finish(exit_code=0 if error is None else 1)


def _plain_name(name: str) -> str:
    """Replace the characters of a name that MLflow does not allow."""
    return re.sub(r"[^\w./ -]", "_", name)


class Tracking:
    """The tracking of one run: every row of its metrics goes to the tracker as it is recorded."""

    def __init__(self, tracker: Tracker, run: RunState) -> None:
        self.tracker, self.folder = tracker, run.folder
        resumed = "resumed" in run.folder.manifest
        tracker.begin(run.folder.path, flat(to_mapping(run.config)), resumed)
        run.folder.listeners.append(self.log)

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass on a row of the metrics; if the tracker fails, log the error and stop tracking, not the run."""
        name = "/".join(str(row[key]) for key in ("split", "metric", "head", "region", "group"))
        try:
            self.tracker.log(int(row["step"]), name, float(row["value"]))
        except Exception as error:  # no error of a client or its server may end the run
            self.folder.listeners.remove(self.log)
            self.folder.log(f"tracker: {error}; nothing more is sent")

    def end(self, error: BaseException | None) -> None:
        """Close the tracker."""
        try:
            self.tracker.end(error)
        except Exception as fault:
            self.folder.log(f"tracker: {fault}")


def tracker_of(config: Config) -> Tracker | None:
    """Return the tracker of a configuration, or None. Raises: UserError if its package is not installed."""
    return None if config.tracker is None else build(config.tracker, "tracker")


def require_consent(config: Config, keys: Iterable[str]) -> None:
    """Raise UserError if only a run's folder, and none of the user's `keys`, names the server that receives records."""
    if any(key.partition(".")[0] == "tracker" for key in keys):
        return
    tracker = tracker_of(config)
    if tracker is not None and tracker.sends_to:
        raise UserError(
            f"tracker: the run folder sends its records to {tracker.sends_to}; give tracker=null to send nothing, "
            "or repeat its key, such as tracker.uri=…, to agree"
        )


def track(tracker: Tracker | None, run: RunState) -> Tracking | None:
    """Start a tracker for a run; return None without one. Raises: UserError if it cannot start."""
    if tracker is None:
        return None
    try:
        return Tracking(tracker, run)
    except Exception as error:
        run.folder.release()
        raise UserError(f"tracker: cannot start ({first_line(error) or type(error).__name__})") from error
