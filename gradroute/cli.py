"""`gradroute-run`: compose the configuration with Hydra, check it, run it; say mistakes in one line.

`gradroute-tokens` takes the same, and shows what the token rules do instead of running it.
"""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.command import guarded, one_line, report_failure
from gradroute.errors import UserError
from gradroute.stopping import heard

if TYPE_CHECKING:
    from gradroute.schema import Config


RUN_CODE = "run_code=true"


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, else the checkout's."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def _again(run: Path, overrides: Sequence[str], resumes: bool) -> None:
    """Repeat a run from its folder, or go on with it there, with `key=value` changes.

    `run_code=true` lets the run's predicates be called.
    """
    from omegaconf import OmegaConf

    from gradroute.config import from_mapping, one_by_seed, to_mapping
    from gradroute.folders import read_rerun

    changes = [override for override in overrides if override != RUN_CODE]
    for override in changes:
        if "=" not in override or override[0] in "+~-":
            taking = "resume" if resumes else "rerun"
            raise UserError(f"{override}: beside {taking}=RUN only key=value can be given, such as trainer.device=cpu")
    keys = [override.partition("=")[0] for override in changes]
    given = [*keys, "output_dir"] if resumes else keys  # which does not write there
    source = OmegaConf.create(to_mapping(read_rerun(run, given, RUN_CODE in overrides)))
    for override in changes:
        key, _, value = override.partition("=")
        OmegaConf.update(source, key, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
    Plan(jobs=[Job(changes, one_by_seed(from_mapping(source)))], resumed=run if resumes else None).finish()


@dataclass
class Job:
    """What one line of a sweep asked for, and its runs' folders or what went wrong."""

    overrides: list[str]
    configs: list["Config"] = field(default_factory=list)
    outcomes: list["Path | Exception"] = field(default_factory=list)


@dataclass
class Plan:
    """The jobs of one command; `folder` is None if it is no sweep, `resumed` the run that its only job goes on with."""

    folder: Path | None = None
    jobs: list[Job] = field(default_factory=list)
    resumed: Path | None = None

    def execute(self) -> None:
        """Make the runs that are not made yet: only now, so that those of several jobs can be trained together."""
        todo = [job for job in self.jobs if job.configs and not job.outcomes]
        if not todo:
            return
        from gradroute.runner import execute  # only now, so that --help and mistakes are quick

        outcomes = iter(execute([c for job in todo for c in job.configs], self.folder is not None, self.resumed))
        for job in todo:
            job.outcomes = list(itertools.islice(outcomes, len(job.configs)))

    def compare(self) -> None:
        """Compare the runs, where there are several, on the terminal and in the sweep's folder."""
        runs = list(dict.fromkeys(o for job in self.jobs for o in job.outcomes if isinstance(o, Path)))
        if self.folder is None and len(runs) < 2:
            return
        from gradroute.collecting import SWEEP_FILE
        from gradroute.compare import compare
        from gradroute.records import write_atomically

        paths = list(map(str, runs))
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            failed = [{"job": ", ".join(job.overrides), "error": one_line(e)} for job, e in self.failures()]
            listed = {"runs": [os.path.relpath(run, self.folder) for run in runs], "failed": failed}
            write_atomically(self.folder / SWEEP_FILE, json.dumps(listed, indent=2) + "\n")
            paths = [str(self.folder)]
        try:
            compare(paths, out=self.folder, failed=False)
        except UserError as error:  # such as runs without evaluation
            print(f"no comparison: {error}", file=sys.stderr)
        if self.folder is not None:
            print(self.folder)

    def failures(self) -> list[tuple[Job, Exception]]:
        """What went wrong, with the job it belongs to."""
        return [(job, outcome) for job in self.jobs for outcome in job.outcomes if isinstance(outcome, Exception)]

    def finish(self) -> None:
        """Make the runs, compare them, and say what failed; raises the last failure."""
        self.execute()
        self.compare()
        failures = self.failures()
        for what, error in failures:
            if self.folder is not None:
                print(f"failed: {', '.join(what.overrides) or 'the only job'}", file=sys.stderr)
            if error is not failures[-1][1]:
                report_failure(error)
        if failures:
            raise failures[-1][1]


def _hydra_run(show: bool = False) -> None:
    """Make the runs that the command line asks for; with `show`, only show what their token rules do."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    plan = Plan()

    @hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")
    def job(composed: DictConfig) -> None:
        from gradroute.config import from_mapping, one_by_seed

        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            plan.folder = Path(hydra_config.sweep.dir)
        made = Job(list(hydra_config.overrides.task))
        plan.jobs.append(made)
        try:
            made.configs = one_by_seed(from_mapping(composed))
        except UserError as error:  # a sweep goes on with its other runs
            made.outcomes = [error]
        if not show and not str(hydra_config.launcher._target_).endswith(".BasicLauncher"):
            plan.execute()  # in a process of its own

    job()
    if show:
        from gradroute.token_command import show_tokens

        for made in plan.jobs:
            if made.outcomes and isinstance(made.outcomes[0], Exception):
                raise made.outcomes[0]
            for config in made.configs:
                show_tokens(config)
    else:
        plan.finish()


def tokens_main() -> None:
    """Entry point of `gradroute-tokens`."""
    with heard():
        sys.exit(guarded(lambda: _hydra_run(show=True)))


def main() -> None:
    """Entry point of `gradroute-run`."""
    with heard():
        for taking in ("rerun=", "resume="):
            runs = [argument for argument in sys.argv[1:] if argument.startswith(taking)]
            if runs:
                run, others = Path(runs[0].removeprefix(taking)), [a for a in sys.argv[1:] if a != runs[0]]
                sys.exit(guarded(lambda: _again(run, others, taking == "resume=")))  # noqa: B023 # called at once
        sys.exit(guarded(_hydra_run))


if __name__ == "__main__":
    main()
