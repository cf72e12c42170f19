"""`gradroute-run`: compose the configuration with Hydra, check it, run it; say mistakes in one line."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from gradroute.command import guarded, report_failure
from gradroute.errors import UserError


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, else the checkout's."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def _rerun(run: Path, overrides: Sequence[str]) -> None:
    """Repeat a run from its folder, with `key=value` changes."""
    from omegaconf import OmegaConf

    from gradroute.config import from_mapping, to_mapping
    from gradroute.records import read_config
    from gradroute.runner import execute

    for override in overrides:
        if "=" not in override or override[0] in "+~-":
            raise UserError(f"{override}: beside rerun=RUN only key=value can be given, such as seed=1")
    source = OmegaConf.create(to_mapping(read_config(run)))
    for override in overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(source, key, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
    execute(from_mapping(source))


@dataclass
class Sweep:
    """The runs of one command, and the jobs that failed; `folder` is None if it was a single run."""

    folder: Path | None = None
    runs: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def finish(self) -> None:
        """Compare the runs of a sweep, on the terminal and in its folder."""
        if self.folder is not None and self.runs:
            from gradroute.compare import SWEEP_FILE, compare
            from gradroute.records import write_atomically

            listed = [os.path.relpath(run, self.folder) for run in dict.fromkeys(self.runs)]
            write_atomically(self.folder / SWEEP_FILE, json.dumps(listed, indent=2) + "\n")
            try:
                compare([str(self.folder)], out=self.folder)
            except UserError as error:  # such as runs without evaluation
                print(f"no comparison: {error}", file=sys.stderr)
            print(self.folder)


def _hydra_run() -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    failures: list[Exception] = []
    sweep = Sweep()

    @hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")
    def job(composed: DictConfig) -> None:
        from gradroute.config import from_mapping

        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            sweep.folder = Path(hydra_config.sweep.dir)
        try:
            config = from_mapping(composed)
            from gradroute.runner import execute  # only now, so that --help and mistakes are quick

            sweep.runs.append(execute(config, reuse=sweep.folder is not None))
        except Exception as error:  # a sweep goes on with its other runs
            failures.append(error)
            sweep.failed.append(", ".join(hydra_config.overrides.task))

    job()
    sweep.finish()
    for what, error in zip(sweep.failed, failures, strict=True):
        if sweep.folder is not None:
            print(f"failed: {what or 'the only job'}", file=sys.stderr)
        if error is not failures[-1]:
            report_failure(error)
    if failures:
        raise failures[-1]


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point of `gradroute-run`."""
    signal.signal(signal.SIGTERM, _terminate)
    reruns = [a for a in sys.argv[1:] if a.startswith("rerun=")]
    if reruns:
        others = [a for a in sys.argv[1:] if a != reruns[0]]
        status = guarded(lambda: _rerun(Path(reruns[0].partition("=")[2]), others))
    else:
        status = guarded(_hydra_run)
    sys.exit(status)


if __name__ == "__main__":
    main()
