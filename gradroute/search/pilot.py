"""Find a mask by a pilot: one short unrouted run, the groups' gradients at every candidate site, and ablations.

The site is where groups conflict most: there, the largest share of what one group learns is unlearned by another. Units
go to the groups that use them more, in a balanced assignment. Gradients do not say what matters, so the candidates with
the most conflict are tried: the pilot trains on for a few updates under each one's mask, and its units are ablated,
group by group. The one whose ablations take their own groups alone, and whose units tell nothing of others', is chosen.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from gradroute.config.auto import AutoConfig, removed_group
from gradroute.config.compensation import labelled_share
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing import Region, Router, Site
from gradroute.search import agreement, choice
from gradroute.search.agreement import Signals
from gradroute.search.candidates import Candidate, candidates
from gradroute.search.found import Evidence, Found
from gradroute.search.problem import Problem
from gradroute.search.progress import Progress
from gradroute.search.signals import CHUNK, leaks, losses, measure, only_way, rises, whole_rises
from gradroute.training.fit import Fit
from gradroute.training.training import Training
from gradroute.training.weights import own_tensors, read_weights

DIGITS = 4  # of a weight
SNAPSHOTS = 3  # times in a pilot at which gradients are measured
MODEL = "model"  # prefix of the weights in a checkpoint
OTHER = "has a pilot of other settings that was interrupted; set another search.name=, or delete the folder"


class Pilot(Problem):
    """A pilot of a configuration, checked and not yet trained.

    Attributes: `updates`, those of the unrouted training; `cost`, all updates, and the backward passes that measure
    gradients.

    Raises: UserError for a problem that has too little to compare, a model without candidates, or a run that is too
        short.
    """

    def __init__(self, config: Config, auto: AutoConfig) -> None:
        super().__init__(config, auto.points)
        self.auto = auto
        self.candidates = candidates(self.task.model, self.example(), auto, len(self.rows))
        self.checked = min(auto.checked, len(self.candidates))
        each = max(1, auto.points // SNAPSHOTS)
        self.shown = [[own[n * each : (n + 1) * each] for own in self.rows] for n in range(SNAPSHOTS)]
        self.shown = [[own if len(own) else all_ for own, all_ in zip(s, self.rows, strict=True)] for s in self.shown]
        passes = sum(math.ceil(len(own) / CHUNK) for shown in self.shown for own in shown)
        left = math.floor(self.whole * auto.share) - passes
        self.probes = left // 2 // self.checked
        self.updates = left - self.probes * self.checked
        if self.probes < 1 or self.updates < SNAPSHOTS:
            right = math.ceil((passes + 2 * self.checked + SNAPSHOTS) / auto.share)
            fault = f"a run of {self.whole} updates is too short for a pilot"
            raise UserError(f"{auto.key}: {fault}; give one of {right} or more, or a smaller {auto.key}.points")
        self.cost = passes + self.updates + self.probes * self.checked

    def train(self, updates: int, number: int, after: Callable[[int], None] = lambda update: None) -> None:
        """Train the model for some updates, on points drawn at random, with routes if the task has some by now.

        `number` tells the trainings of a pilot apart; `after` is called with the number of updates made so far.
        """
        task, size = self.task, self.config.trainer.batch_size
        order = torch.Generator().manual_seed(1000 * self.config.seed + number)
        wanted = updates * size
        drawn = [torch.randperm(task.points, generator=order) for _ in range(math.ceil(wanted / task.points))]
        rows = torch.cat(drawn)[:wanted].to(task.device)
        given = task.config.trainer
        trainer = replace(given, epochs=1, batches="mixed", warmup_steps=min(given.warmup_steps, updates // 5),
                          schedule="constant", end_rate=0.0)  # fmt: skip
        trainer = task.fitted(trainer, len(rows))
        objective = task.objective()
        training = Training("pilot", objective, lambda chosen: task.batch(rows[chosen]), len(rows), trainer, order)
        fit = Fit([training], trainer.precision, task.device)
        fit.run(lambda: after(fit.step))

    def sites(self) -> list[Site]:
        """Return every site of the candidates once."""
        return list(dict.fromkeys(site for one in self.candidates for site in one.sites))

    def find(self, folder: Path) -> Found:
        """Train the pilot, measure the candidates and return the mask; go on with what a folder has of it.

        Raises: UserError if no loss reaches a site, or for a checkpoint that is damaged or of another pilot.
        """
        of = json.dumps([asdict(self.auto), self.updates, self.probes], sort_keys=True)
        progress = Progress(folder, of, OTHER, self.config.checkpoint.minutes)
        if (found := progress.read()) is None:
            evidence = self.measured()
            self.save(progress, evidence)
        else:
            read_weights(folder, {MODEL: self.task.model}, name=found[0])
            evidence = [Evidence(**one) for one in found[1]["evidence"]]
        order = choice.tried(evidence, self.checked)
        self.check([evidence[n] for n in order], lambda: self.save(progress, evidence))
        mask = Found("pilot", list(self.task.names), evidence, choice.chosen(evidence, order), self.cost, "")
        return replace(mask, why=choice.why(mask, len(order), self.whole))

    def save(self, progress: Progress, evidence: Sequence[Evidence]) -> None:
        """Write a checkpoint, if one is due; the model must have its weights after the unrouted training."""
        if progress.due:
            weights = {f"{MODEL}.{name}": tensor for name, tensor in own_tensors(self.task.model).items()}
            checked = sum(one.whole is not None for one in evidence)
            progress.save(checked, {"evidence": [asdict(one) for one in evidence]}, weights)

    def measured(self) -> list[Evidence]:
        """Train the pilot, and return the evidence that gradients give for every candidate that a loss reaches."""
        at = [max(1, round(self.updates * (n + 1) / SNAPSHOTS)) for n in range(SNAPSHOTS)]
        signals: list[dict[str, Signals]] = []

        def after(update: int) -> None:
            if update in at:
                shown, named = self.shown[at.index(update)], f"{self.auto.key}.sites" if self.auto.sites else ""
                signals.append(measure(self.task, self.sites(), shown, self.config.seed, named)[0])

        self.train(self.updates, 0, after)
        reached = [one for one in self.candidates if all(site.name in signals[0] for site in one.sites)]
        if not reached:
            key = self.auto.key
            raise UserError(f"{key}: no candidate site is in the forward path of a loss; name {key}.sites")
        found = [self.judged(one, [[s[site.name] for site in one.sites] for s in signals]) for one in reached]
        before = losses(self.task, self.rows)
        whole = [whole_rises(self.task, self.rows, one, before) for one in reached]
        largest = [max(column) for column in zip(*whole, strict=True)]
        for one, own in zip(found, whole, strict=True):
            one.held = agreement.held(own, largest)
        return found

    def judged(self, candidate: Candidate, signals: Sequence[Sequence[Signals]]) -> Evidence:
        """Return the evidence that gradients alone give for a candidate.

        Products and squares are summed over the snapshots, each of which counts alike: early in a training the groups'
        mean gradients are large and agree, late they cancel each other at any site.

        Args:
            signals: of each of its sites, at each snapshot.
        """
        mean = torch.stack([torch.cat([one.mean for one in each], -1) for each in signals])
        size = mean.flatten(1).norm(dim=1).clamp(min=agreement.EPSILON)
        mean = mean / size[:, None, None, None]
        squares = torch.stack([torch.cat([one.fisher for one in each], -1) for each in signals])
        fisher = (squares / size.square()[:, None, None, None]).sum(0)
        inner, shared = torch.stack([agreement.products(each) for each in mean]).sum(0), agreement.shares(fisher)
        clash = agreement.conflict(torch.cat([agreement.products(each) for each in mean], -1))
        sizes = agreement.sizes(self.counts, candidate.units)
        owner = agreement.assigned(shared, sizes)
        first = candidate.sites[0]
        return Evidence(
            candidate.name, [site.module for site in candidate.sites], first.axis, first.output,
            clash, float(agreement.pairs(agreement.cosines(inner)).mean()),
            float(agreement.pairs(agreement.overlaps(fisher)).mean()), owner.tolist(),
            [[round(value, 6) for value in row] for row in shared.tolist()], self.outside(inner, owner),
            numbers=candidate.numbers, only_way=only_way(self.task, candidate),
        )  # fmt: skip

    def outside(self, inner: torch.Tensor, owner: torch.Tensor) -> list[list[float]]:
        """Return the gradient weight of each group (row) in the units of each group (column); 1 in its own.

        What a group has in common with others is taken back only if one group is to be removed. Where every group has
        to stay whole in its own region, that makes the model worse and separates the groups no better.
        """
        groups, routing = range(len(inner)), self.config.routing
        if self.auto.outside is not None:
            return [[1.0 if a == b else self.auto.outside for b in groups] for a in groups]
        rows, removed = [], removed_group(self.config, self.auto)
        for group, name in enumerate(self.task.names):
            stays = routing.unlabelled == name or name not in routing.groups
            share = 1.0 if stays else labelled_share(routing, name)
            units = [torch.nonzero(owner == other).flatten().tolist() for other in groups]
            common = [agreement.common(inner, group, own) if removed else 0.0 for own in units]
            weights = [agreement.outside_weight(each, share) for each in common]
            rows.append([1.0 if other == group else round(weights[other], DIGITS) for other in groups])
        return rows

    def check(self, evidence: Sequence[Evidence], after: Callable[[], None]) -> None:
        """Train on under each candidate's mask, ablate its units group by group, and note what that does to the groups.

        Each starts from the pilot's weights. Those that were checked before an interruption are not checked again.
        `after` is called after each.
        """
        groups, model = range(len(self.rows)), self.task.model
        kept, named = copy.deepcopy(model.state_dict()), {one.name: one for one in self.candidates}
        for number, one in enumerate(evidence, 1):
            if one.whole is not None:
                continue
            candidate, owner = named[one.name], torch.tensor(one.owner)
            with self.routed(candidate, one):
                self.train(self.probes, number)
            found, one.whole = rises(self.task, self.rows, candidate, owner)
            one.leak = leaks(self.task, self.rows, candidate, owner)
            one.own = [found[group][group] for group in groups]
            one.others = [sum(found[o][g] for o in groups if o != g) / (len(groups) - 1) for g in groups]
            model.load_state_dict(kept)
            after()
        largest = [max(one.whole[group] for one in evidence if one.whole) for group in groups]
        for one in evidence:
            assert one.own is not None and one.others is not None and one.leak is not None
            held = agreement.contrast(one.own, one.others, largest)
            one.score = held * (1 - sum(one.leak) / len(one.leak))

    @contextmanager
    def routed(self, candidate: Candidate, one: Evidence) -> Iterator[None]:
        """Route the task's model by a candidate's mask inside the block."""
        task, first, parts = self.task, candidate.sites[0], self.task.parts
        modules, names = tuple(site.module for site in candidate.sites), list(self.task.names)
        units = [[unit for unit, owner in enumerate(one.owner) if owner == group] for group in range(len(names))]
        regions = {name: Region(modules, units[n], first.axis, first.output) for n, name in enumerate(names)}
        routes = {name: {o: one.outside[n][m] for m, o in enumerate(names) if m != n} for n, name in enumerate(names)}
        router = Router(task.model, regions, names, routes, self.example())
        task.parts = replace(parts, router=router)
        try:
            yield
        finally:
            task.parts = parts
