"""Measure a model of modules under its access profiles: the loss of every profile on every group."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from gradroute.audit.compute import LEAST, PowerLaw, curve_of, fitted
from gradroute.config.limits import Between, Items, Text, one_of
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.models.beside import CORE, beside, dosed, parse_profile
from gradroute.records.metrics import DOSE, PROFILE
from gradroute.steps.base import RunState, Step
from gradroute.steps.tuning import require_language
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.probe import Measurement
from gradroute.training.measures import CROSS_ENTROPY
from gradroute.training.training import Training

EVERY = 4  # modules; with more, only some of the subsets are measured


def profiles_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all subsets of up to four modules; of more: none, each alone, all but each, and all."""
    sizes = range(len(names) + 1) if len(names) <= EVERY else (0, 1, len(names) - 1, len(names))
    return [chosen for size in sizes for chosen in itertools.combinations(names, size)]


@dataclass
class Profiles(Step):
    """Record the cross-entropy of profiles such as `core+sea` on groups, under head `profile`, by profile.

    Args:
        profiles: the profiles; none given, all that there are, or with more than four modules core, core and one, all
            but one, and all.
        groups: the groups to measure on; none given, all.
        doses: further doses of each module alone beside the core, such as 0.5: its output is multiplied by them.
        baseline: a finished run in which every document trains everything, such as `profiles/control`, with four or
            more test evaluations on the way; then compute ratios are recorded as well.
    """

    profiles: Sequence[str] = ()
    groups: Sequence[str] = ()
    doses: Annotated[Sequence[Annotated[float, Between(0, 1)]], Items(0, each_once=True, right="doses")] = ()
    baseline: Annotated[str, Text("the folder of a run")] | None = None

    units: ClassVar[Mapping[str, str]] = {"compute_ratio": "updates of the baseline that the loss is worth, as a share"}

    def check(self, config: Config) -> None:
        """Raise UserError for an unknown group."""
        for group in self.groups:
            one_of("profiles.groups", group, tuple(config.routing.groups))

    def prepare(self, task: Task) -> None:
        """Raise UserError for a model without modules, or a profile that it does not have."""
        names = list(beside(require_language(task, "profiles").model))
        if not names:
            raise UserError("profiles: needs a model with modules beside its MLPs; set model.modules")
        for profile in self.profiles:
            parse_profile(profile, names, "profiles.profiles")
        if self.baseline is not None and not self._laws(task):
            fault = f"has no falling curve of {LEAST} or more test losses of any group"
            raise UserError(f"profiles.baseline={self.baseline}: {fault}; give one with more trainer.epochs")

    def run(self, run: RunState) -> Iterable[Training]:
        """Measure and record; the model does not change."""
        laws = self._laws(run.task)
        for group, head, metric, value in self.measured(run.task):
            run.record("test", (group, head, metric, value))
            if group in laws:
                law, last = laws[group]
                run.record("test", (group, head, "compute_ratio", law.updates(value) / law.updates(last)))
        return ()

    def _laws(self, task: Task) -> dict[str, tuple[PowerLaw, float]]:
        """Return the baseline's curve of each group, with its last loss. Raises: UserError if it is not a run."""
        found = {}
        for group in self.groups or task.names if self.baseline is not None else ():
            points = curve_of(Path(self.baseline or "").expanduser(), group, CROSS_ENTROPY.name)
            law = fitted(points)
            if law is not None:
                found[group] = law, points[-1][1]
        return found

    def measured(self, task: Task) -> Iterator[Measurement]:
        """Yield the loss of every profile on every group that has test documents."""
        language, names = require_language(task, "profiles"), list(beside(task.model))
        chosen = [parse_profile(profile, names) for profile in self.profiles] or profiles_of(names)
        asked = [("+".join((CORE, *used)), dict.fromkeys(used, 1.0)) for used in chosen]
        asked += [(f"{CORE}+{name}{DOSE}{dose:g}", {name: dose}) for name in names for dose in self.doses]
        for name, doses in asked:
            with dosed(task.model, doses):
                found = language.group_losses(task.model, language.data.test, language.test_groups)
            for group in self.groups or task.names:
                if group in found:
                    yield group, Head(PROFILE, name), CROSS_ENTROPY.name, found[group]
