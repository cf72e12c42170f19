"""A search: studies of Optuna in one journal file, whose trials are ordinary runs.

Several processes may work on a search. If the process of a trial dies, another one repeats the trial with the same
values: it resumes the run from its checkpoint, or uses the run if it had finished.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from gradroute.config.compose import configuration
from gradroute.config.overrides import merged
from gradroute.config.schema import Config
from gradroute.errors import UserError, first_line
from gradroute.records import locks
from gradroute.records.atomic import write_atomically
from gradroute.records.provenance import version
from gradroute.search.budget import FIXED, KEPT, affords, counts, sampler, updates_of
from gradroute.search.fidelity import worse
from gradroute.search.objectives import check_metrics, default_objectives, measured, units_of, value_of
from gradroute.search.schema import SearchConfig
from gradroute.search.space import Overrides, check_start, ends, space

IDENTITY = ("space", "objectives", "overrides", "seed", "pruning", "guess")  # what identifies a search
Said = Callable[[str], None]


class Search:
    """A search in its folder; `overrides` are those of the command, which all trials share.

    Raises: UserError if the folder has another search, or if neither search nor experiment names objectives.
    """

    def __init__(
        self, search: SearchConfig, overrides: Sequence[str], config_dir: Path | None = None, say: Said = print
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search, self.given, self.config_dir, self.say = search, list(overrides), config_dir, say
        self.space = space(search.space)
        self._composed: dict[tuple[str, ...], Config] = {}
        handmade = self._configuration(self.command([]))
        self.search = replace(search, objectives=search.objectives or default_objectives(handmade))
        self.units = units_of(handmade)
        check_metrics(self.search.objectives, self.units)
        self.folder = Path(handmade.output_dir) / "searches" / search.name
        self._worker: Path | None = None
        self._open()

    def config(self, overrides: Overrides, final: bool = False) -> Config:
        """Return the configuration of a trial, or of its final run; both write to the search's folder."""
        config = self._configuration(self.command(overrides, final))
        config.output_dir = str(self.folder / ("finals" if final else "trials"))
        return config

    def _configuration(self, command: Overrides) -> Config:
        """Return the configuration of a command, which is composed once: that takes longer than a copy."""
        key = tuple(command)
        if key not in self._composed:
            self._composed[key] = configuration(command, self.config_dir)
        return deepcopy(self._composed[key])

    def command(self, overrides: Overrides, final: bool = False) -> Overrides:
        """Return the overrides of `gradroute-run` that make a trial's run, or a final one."""
        return merged(self.search.final.overrides if final else self.search.overrides, self.given, overrides)

    def _open(self) -> None:
        identity = {key: value for key, value in asdict(self.search).items() if key in IDENTITY}
        identity |= {"given": self.given, "gradroute": version("gradroute")}
        about = self.folder / "search.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not about.exists():
                write_atomically(about, json.dumps(identity, indent=2) + "\n")
            try:
                found = json.loads(about.read_text())
                other = [key for key in identity if found[key] != json.loads(json.dumps(identity[key]))]
                journal = str(self.folder / "study.journal")
                self.storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{self.folder}: damaged ({error}); set another search.name=") from None
            if other:
                keys = ", ".join("override" if key == "given" else key for key in other)
                raise UserError(f"{self.folder}: has a search of another {keys}; set another search.name=")
            goals = [one.goal for one in self.search.objectives.values()]
            directions = [StudyDirection.MINIMIZE if goal == "lower" else StudyDirection.MAXIMIZE for goal in goals]
            options: dict[str, Any] = {"storage": self.storage, "directions": directions, "load_if_exists": True}
            self.studies = {name: optuna.create_study(study_name=name, **options) for name in ("search", "random")}

    def _alone(self) -> FileLock:
        return FileLock(self.folder / ".asking")

    def try_space(self) -> None:
        """Check the configuration at every end and choice of the space. Raises: UserError if one is invalid."""
        tried = [ends(found) for found in self.space]
        first = [own[0] for own in tried]
        others = [[*first[:at], end, *first[at + 1 :]] for at, own in enumerate(tried) for end in own[1:]]
        for parts in [first, *others]:
            self.config(list(chain(*parts)))
        self.config([], final=True)
        check_start(self.search.start, self.space)

    def prepare(self) -> None:
        """Enqueue the hand-made mask, the guess and its placebos before all other trials."""
        self.enqueue("handmade", [])
        if self.search.start and self.search.method == "tpe":
            self._start()
        if self.search.guess is None:
            return
        with FileLock(self.folder / ".guessing"):
            if any(trial.user_attrs.get("kind") == "guess" for trial in self.trials("search")):
                return
            from gradroute.running.runner import execute
            from gradroute.search.found import unrouted
            from gradroute.search.guess import guess

            config = self.config(self.search.guess.overrides)
            run = execute([unrouted(config)], reuse=True)[0]
            if isinstance(run, Exception):
                raise run
            guessed, placebos = guess(config, run, self.search.guess.by, self.search.guess.placebos, self.search.seed)
            for kind, overrides in [("guess", guessed), *(("placebo", placebo) for placebo in placebos)]:
                self.enqueue(kind, overrides)

    def _start(self) -> None:
        study = self.studies["search"]
        with self._alone():
            if not any("start" in trial.user_attrs for trial in study.get_trials(deepcopy=False)):
                study.enqueue_trial(self.search.start, user_attrs={"start": True})

    def busy(self) -> bool:
        """Return whether a process is making a trial."""
        trials = [trial for name in self.studies for trial in self.trials(name)]
        return any(trial.state == TrialState.RUNNING and not self._lost(trial) for trial in trials)

    def enqueue(self, kind: str, overrides: Overrides) -> None:
        """Enqueue a trial with given overrides before all others, once."""
        with self._alone():
            study = self.studies["search"]
            fixed = {"kind": kind, "fixed": overrides}
            if not any(self._same(trial, fixed) for trial in study.get_trials(deepcopy=False)):
                study.enqueue_trial({}, user_attrs=fixed)

    @staticmethod
    def _same(trial: FrozenTrial, attributes: dict[str, Any]) -> bool:
        return all(trial.user_attrs.get(key) == value for key, value in attributes.items())

    def work(self) -> None:
        """Make trials until the search has all that it asks for; several processes may do so at once."""
        self._worker = self.folder / "workers" / uuid.uuid4().hex
        self._worker.mkdir(parents=True)
        taken = locks.take(self._worker)
        try:
            for name, count in counts(self.search).items():
                while (trial := self._ask(name, count)) is not None:
                    self._make(name, trial)
        finally:
            locks.release(self._worker, taken)
            self._worker.rmdir()

    def _lost(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        return trial.state == TrialState.RUNNING and not (worker and locks.in_use(self.folder / "workers" / worker))

    def trials(self, name: str) -> list[FrozenTrial]:
        """Return a study's trials except lost ones, which others replace."""
        found = self.studies[name].get_trials(deepcopy=False)
        return [trial for trial in found if not (trial.state == TrialState.FAIL and "error" not in trial.user_attrs)]

    def _ask(self, name: str, count: int) -> Trial | None:
        """Return the next trial with its overrides, or None if enough were begun."""
        study = self.studies[name]
        with self._alone():
            for lost in [trial for trial in self.trials(name) if self._lost(trial)]:
                study.tell(lost.number, state=TrialState.FAIL)
                kept = {key: value for key, value in lost.user_attrs.items() if key in KEPT}
                study.enqueue_trial(lost.params, user_attrs=kept)
            found = self.trials(name)
            begun = [trial for trial in found if trial.state != TrialState.WAITING]
            wanted = count + sum(trial.user_attrs.get("kind") in FIXED for trial in found)
            every = [trial for own in self.studies for trial in self.trials(own)]
            if len(begun) >= wanted or not (len(begun) < len(found) or affords(self.search.budget, begun, every)):
                return None
            study.sampler = sampler(self.search, name, len(begun))
            trial = study.ask()
            assert self._worker is not None
            trial.set_user_attr("worker", self._worker.name)
            fixed = trial.user_attrs.get("fixed")
            chosen = [override for one in self.space for override in one.suggest(trial)] if fixed is None else fixed
            trial.set_user_attr("overrides", chosen)
            return trial

    def _make(self, name: str, trial: Trial) -> None:
        """Make a trial's run and tell the study the result."""
        from gradroute.running.run import Pruned
        from gradroute.running.runner import execute  # imported late: torch takes seconds

        objectives, rule, began = list(self.search.objectives.values()), self.search.pruning, time.monotonic()
        may_end = rule.enabled and trial.user_attrs.get("kind") not in FIXED

        def watch(step: int, rows: list[dict[str, Any]]) -> None:
            found = [value_of(rows, objective) for objective in objectives]
            point = [float(step), *(value for value in found if value is not None)]
            before = [past for past in trial.user_attrs.get("curve", []) if past[0] < step]  # also from a lost process
            trial.set_user_attr("curve", [*before, point])
            if may_end and (why := worse([*before, point], self.trials(name), objectives, rule)):
                raise Pruned(f"update {step}: {why}")

        try:
            config = self.config(trial.user_attrs["overrides"])
            outcome = execute([config], reuse=True, watch=watch)[0]
        except UserError as error:
            outcome = error
        trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
        trial.set_user_attr("updates", updates_of(outcome, trial.user_attrs))
        if isinstance(outcome, Pruned):
            self._tell(name, trial, None, TrialState.PRUNED, f"pruned at {outcome}")
        elif isinstance(outcome, Exception):
            reason = first_line(outcome) or type(outcome).__name__
            trial.set_user_attr("error", reason)
            self._tell(name, trial, None, TrialState.FAIL, f"failed: {reason}")
        else:
            values = self.values(outcome)
            trial.set_user_attr("run", os.path.relpath(outcome, self.folder))
            said = ", ".join(f"{key} {value:.4f}" for key, value in zip(self.search.objectives, values, strict=True))
            self._tell(name, trial, values, TrialState.COMPLETE, said)

    def values(self, run: Path) -> list[float]:
        """Return the objectives of a finished run. Raises: UserError if the run did not write one."""
        return measured(run, self.search.objectives)

    def _tell(self, name: str, trial: Trial, values: list[float] | None, state: TrialState, said: str) -> None:
        chosen = " ".join(trial.user_attrs["overrides"]) or "as the experiment has it"
        self.say(f"{trial.user_attrs.get('kind', name)} {trial.number}: {said}; {chosen}")
        self.studies[name].tell(trial, values, state)
