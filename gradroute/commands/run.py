"""`gradroute-run`: compose the configuration with Hydra, check it, run it; say mistakes in one line.

`gradroute-tokens` takes the same, and shows what the token rules do instead of running it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from gradroute.errors import UserError
from gradroute.running.exit_status import guarded
from gradroute.running.jobs import Index, Job, Noted, say
from gradroute.running.launching import launched
from gradroute.running.plan import Plan
from gradroute.training.signals import heard

RUN_CODE = "run_code=true"


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, else the checkout's."""
    packaged = Path(__file__).parent.parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def _again(run: Path, overrides: Sequence[str], resumes: bool) -> None:
    """Repeat a run from its folder, or go on with it there, with `key=value` changes.

    `run_code=true` lets the run's predicates be called.
    """
    from omegaconf import OmegaConf

    from gradroute.config.typed import from_mapping, one_by_seed, to_mapping
    from gradroute.records.run_reader import read_rerun

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


def _hydra_run(show: bool = False) -> None:
    """Make the runs that the command line asks for; with `show`, only show what their token rules do."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    plan = Plan()

    @hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")
    def job(composed: DictConfig) -> None:
        from gradroute.config.typed import from_mapping, one_by_seed

        hydra_config = HydraConfig.get()
        made = Job(list(hydra_config.overrides.task))
        if hydra_config.mode == RunMode.MULTIRUN:
            plan.folder, made.number = Path(hydra_config.sweep.dir), int(hydra_config.job.num)
        try:
            made.configs = one_by_seed(from_mapping(composed))
        except UserError as error:  # a sweep goes on with its other runs
            made.outcomes = [error]
        if plan.folder and not show and not str(hydra_config.launcher._target_).endswith(".BasicLauncher"):
            Index(plan.folder).make(made)  # in a process of its own
        else:
            plan.jobs.append(made)

    if show:
        from gradroute.commands.tokens import show_tokens

        job()
        for made in plan.jobs:
            if made.outcomes and isinstance(made.outcomes[0], Exception):
                raise made.outcomes[0]
            for config in made.configs:
                show_tokens(config)
        return
    launched(job)
    if Noted.folder is not None and not plan.jobs:
        plan.folder, plan.jobs, plan.elsewhere = Noted.folder, Index(Noted.folder).jobs(), True
        say(plan.folder)
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
