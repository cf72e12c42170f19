"""`gradroute-run`: compose the configuration with Hydra, check it and run it; report a mistake in one line.

`gradroute-tokens` takes the same arguments. It does not train, but shows what the token rules do.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gradroute.commands.help import help_text
from gradroute.commands.version import answered
from gradroute.config.compose import BASE, conf_dir, use_code_of, without_config_dirs, without_replaced
from gradroute.config.overrides import own_folders, plain, prepared
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.run_reader import RUN_CODE
from gradroute.running.exit_status import guarded, importing
from gradroute.running.jobs import Index, Job, Noted, say
from gradroute.running.launching import launched
from gradroute.running.plan import Plan
from gradroute.search.automatic import settled
from gradroute.training.signals import heard

HELP = ("--help", "-h")


def _from_folder(run: Path, arguments: Sequence[str], resumes: bool) -> None:
    """Repeat a run from its folder, or resume it there, with `key=value` changes.

    `run_code=true` allows code that the folder names; modules beside a `--config-dir` are found, too.
    """
    from omegaconf import OmegaConf

    from gradroute.config.build import from_mapping
    from gradroute.config.identity import one_by_seed, to_mapping
    from gradroute.records.run_reader import read_rerun
    from gradroute.running.trackers import require_consent

    rest, folders = without_config_dirs(arguments)
    for folder in folders:
        use_code_of(folder)
    changes = [argument for argument in rest if argument != RUN_CODE]
    for change in changes:
        if "=" not in change or change[0] in "+~-":
            taking = "resume" if resumes else "rerun"
            raise UserError(f"{change}: not allowed with {taking}=RUN; give key=value, such as trainer.device=cpu")
    keys = [change.partition("=")[0] for change in changes]
    given = [*keys, "output_dir"] if resumes else keys  # a resumed run does not write to output_dir
    source = OmegaConf.create(to_mapping(read_rerun(run, given, RUN_CODE in arguments)))
    for change in changes:
        key, _, value = change.partition("=")
        OmegaConf.update(source, key, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
    with importing():
        config = from_mapping(source)
    require_consent(config, keys)
    Plan(jobs=[Job(changes, one_by_seed(config))], resumed=run if resumes else None).finish()


def _composed_jobs(plan: Plan, makes: bool) -> Callable[[], None]:
    """Return the function that Hydra calls; it adds a job to the plan for each combination of a sweep.

    makes: whether a job runs at once if a launcher other than Hydra's own started it, in a process of its own.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    @hydra.main(**BASE, config_path=str(conf_dir().resolve()), config_name="config")
    def job(composed: DictConfig) -> None:
        from gradroute.config.build import from_mapping
        from gradroute.config.identity import one_by_seed

        hydra_config = HydraConfig.get()
        for source in hydra_config.runtime.config_sources:
            if source.provider == "command-line":
                use_code_of(Path(source.path))
        given = [*hydra_config.overrides.hydra, *hydra_config.overrides.task]
        made = Job(plain(hydra_config.overrides.task))
        if hydra_config.mode == RunMode.MULTIRUN:
            plan.folder, made.number = Path(hydra_config.sweep.dir), int(hydra_config.job.num)
        try:
            if str(hydra_config.run.dir) != ".":  # a file sets it
                raise own_folders("hydra.run.dir")
            with importing():
                made.configs = one_by_seed(from_mapping(without_replaced(composed, given)))
        except UserError as error:  # the other runs of a sweep continue
            made.outcomes = [error]
        if plan.folder and makes and not str(hydra_config.launcher._target_).endswith(".BasicLauncher"):
            made.configs = [settled(config) for config in made.configs]
            Index(plan.folder).make(made)  # in a process of its own
        else:
            plan.jobs.append(made)

    return job  # type: ignore[no-any-return]  # Hydra's decorator is untyped


def _print_help() -> None:
    _, folders = without_config_dirs([argument for argument in sys.argv[1:] if argument not in HELP])
    print(help_text([conf_dir(), *folders]))


def _hydra_run() -> None:
    """Make the runs that the command line describes."""
    plan = Plan(settle=settled)
    sys.argv[1:] = prepared(sys.argv[1:])
    launched(_composed_jobs(plan, makes=True))
    if Noted.folder is not None and not plan.jobs:
        plan.folder, plan.jobs, plan.elsewhere = Noted.folder, Index(Noted.folder).jobs(), True
        say(plan.folder)
    plan.finish()


def composed_configs(arguments: Sequence[str]) -> list[Config]:
    """Return the configurations that a command line describes, without running them. Raises: UserError."""
    plan, before = Plan(), sys.argv[1:]
    try:
        sys.argv[1:] = prepared(arguments)
        _composed_jobs(plan, makes=False)()
    finally:
        sys.argv[1:] = before
    for made in plan.jobs:
        if made.outcomes and isinstance(made.outcomes[0], Exception):
            raise made.outcomes[0]
    return [config for made in plan.jobs for config in made.configs]


def main() -> None:
    """Entry point of `gradroute-run`."""
    with heard():
        answered(sys.argv[1:])
        if set(HELP) & set(sys.argv[1:]):
            sys.exit(guarded(_print_help))
        for taking in ("rerun=", "resume="):
            runs = [argument for argument in sys.argv[1:] if argument.startswith(taking)]
            if runs:
                run, others = Path(runs[0].removeprefix(taking)), [a for a in sys.argv[1:] if a != runs[0]]
                sys.exit(guarded(lambda: _from_folder(run, others, taking == "resume=")))  # noqa: B023 # called at once
        sys.exit(guarded(_hydra_run))


if __name__ == "__main__":
    main()
