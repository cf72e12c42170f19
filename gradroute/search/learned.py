"""Learn a mask: the model is trained under masks that look ahead, then the masks are fixed and rounded."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch.func import functional_call

from gradroute.config.auto import AutoConfig
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing import Site
from gradroute.routing.hooks import hooked
from gradroute.search import agreement, lookahead
from gradroute.search.candidates import Candidate, candidates
from gradroute.search.found import Evidence, Found
from gradroute.search.lookahead import Lookahead, Parameters
from gradroute.search.problem import Problem
from gradroute.search.progress import Progress
from gradroute.search.schema import LearnedConfig
from gradroute.search.signals import APART
from gradroute.tasks.base import Task
from gradroute.tasks.parts import read_regions

KEY = "search.learned"
OTHER = "has masks that were being learned with another search.learned or search.budget; set another search.name="
START = 2.0  # logit of each group's weight at first: nothing is decided, and all of a gradient passes almost whole


class Named(AutoConfig):
    """The sites that `search.learned` names, as candidates."""

    key: ClassVar[str] = KEY


class Masked:
    """A task's loss as a function of parameters, masks and groups, at one candidate.

    rows: row numbers of each group's points in the current batch.
    """

    def __init__(self, task: Task, candidate: Candidate) -> None:
        self.task, self.candidate = task, candidate
        self.objective = task.objective()
        self.rows: list[torch.Tensor] = []

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters that are trained, by the objective's names."""
        named = self.objective.named_parameters()
        return {name: value.detach().clone() for name, value in named if value.requires_grad}

    def __call__(
        self, parameters: Parameters, group: int, mask: torch.Tensor | None, factors: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean loss of a group's points; see `gradroute.search.lookahead.Loss`."""
        with self._changed(mask, factors):
            terms = functional_call(self.objective, dict(parameters), self.task.batch(self.rows[group]))
        name = self.task.names[group]
        own = [value for term, (value, _) in terms.items() if term.group == name and term.head not in APART]
        return torch.stack(own).sum()

    @contextmanager
    def _changed(self, mask: torch.Tensor | None, factors: torch.Tensor | None) -> Iterator[None]:
        """Weigh the gradient at the candidate's sites by a mask, or scale its units by factors."""

        def hook(site: Site) -> Callable[[Any, Any, Any], Any]:
            def change(module: Any, inputs: Any, output: Any) -> Any:
                shown = site.read(output)
                if mask is not None:
                    weight = site.spread(mask, shown.shape)
                    shown = shown * weight + shown.detach() * (1 - weight)
                return site.replace(output, shown if factors is None else shown * site.spread(factors, shown.shape))

            return change

        with hooked(self.task.model, {site.module: hook(site) for site in self.candidate.sites}, kept=False):
            yield


class Learned(Problem):
    """The learning of a mask, checked and not yet begun.

    Attributes: `iterations`, steps of the masks; `cost`, in updates, see `gradroute.search.lookahead.cost`.

    Raises: UserError for a problem that has too little to compare, an experiment whose regions are no units of one
        width, or a budget that is too small.
    """

    def __init__(self, config: Config, settings: LearnedConfig, budget: int | None) -> None:
        super().__init__(config, settings.points)
        self.settings = settings
        self.candidate = self._site()
        self.sizes = agreement.sizes(self.counts, self.candidate.units)
        shares = [size / self.candidate.units for size in self.sizes]
        self.plan = Lookahead(settings.steps, settings.rate, shares, lowest=settings.lowest)
        groups = len(self.rows)
        each = lookahead.cost(self.plan, groups) + 1  # and the update that is made
        whole = self.whole if budget is None else min(self.whole, budget)
        self.iterations = math.floor(whole * settings.share) // each
        self.cost = each * self.iterations
        if self.iterations < 1:
            right = math.ceil(each / settings.share)
            short = f"a run of {whole} updates is too short for method=learned"
            said = f"search.budget={budget}" if whole == budget else short
            raise UserError(f"{said}: must be {right} updates or more, which looking ahead needs")

    def _site(self) -> Candidate:
        """Return the sites to learn at, divided alike: those that are named, or those of the experiment's regions."""
        named, axis, model = self.settings.sites, None, self.task.model
        if not named:
            regions, _ = read_regions(self.config.routing, model)
            sites = list(dict.fromkeys(site for region in regions.values() for site in region.sites))
            if not sites:
                raise UserError(f"{KEY}.sites: is empty, and the experiment has no region of units; name sites")
            named, axis = [site.module for site in sites], sites[0].axis
        found = candidates(model, self.example(), Named(sites=named, axis=axis), len(self.rows))
        if len(widths := list(dict.fromkeys(one.units for one in found))) > 1:
            empty = "is empty, and the experiment's regions differ; name sites of"
            fault = "must have" if self.settings.sites else empty
            raise UserError(f"{KEY}.sites: {fault} one width, not {widths} units")
        own = tuple(site for one in found for site in one.sites)
        return Candidate(own, found[0].units, sum(one.numbers for one in found))

    def find(self, folder: Path) -> Found:
        """Learn the masks, round them and return the mask; go on from the last checkpoint in a folder, if it has one.

        Raises: UserError if that is damaged, or of other settings.
        """
        of = json.dumps([asdict(self.settings), self.iterations], sort_keys=True)
        learning, progress = Learning(self), Progress(folder, of, OTHER, self.config.checkpoint.minutes)
        learning.read(progress)
        while learning.done < self.iterations:
            learning.step()
            if progress.due:
                learning.save(progress)
        return self.rounded(learning.logits.detach().cpu())

    def rounded(self, logits: torch.Tensor) -> Found:
        """Return the mask of learned logits `(G, U)`: units by membership, outside weights as means, in tenths."""
        owned, weights = lookahead.memberships(logits), lookahead.masks(logits, self.plan.lowest)
        groups = range(len(logits))
        owner = agreement.assigned(owned, self.sizes)
        outside = [[1.0 if h == g else round(float(weights[g, owner == h].mean()), 1) for h in groups] for g in groups]
        first = self.candidate.sites[0]
        evidence = Evidence(
            self.candidate.name, [site.module for site in self.candidate.sites], first.axis, first.output,
            None, None, None, owner.tolist(), [[round(v, 6) for v in row] for row in owned.tolist()], outside,
        )  # fmt: skip
        sure = float(owned.max(0).values.mean())
        said = (
            f"Masks at {self.candidate.name} were learned by looking {self.plan.steps} updates ahead, in "
            f"{self.iterations} steps, which cost {self.cost} updates. A unit belongs to its group by {sure:.2f} of 1 "
            f"on average; {1 / len(logits):.2f} is no preference."
        )
        return Found("learned", list(self.task.names), [evidence], 0, self.cost, said)


class Learning:
    """The state of a learning: the model's parameters and the masks' logits, their optimizers, and the steps done."""

    def __init__(self, learned: Learned) -> None:
        task, config, groups = learned.task, learned.config, len(learned.task.names)
        self.learned, self.masked, self.done = learned, Masked(task, learned.candidate), 0
        self.generator = torch.Generator().manual_seed(config.seed)
        logits = START + 0.1 * torch.randn(groups, learned.candidate.units, generator=self.generator)
        self.logits = logits.to(task.device).requires_grad_()
        self.masks = torch.optim.Adam([self.logits], lr=learned.settings.mask_rate)
        self.parameters = {name: value.requires_grad_() for name, value in self.masked.parameters().items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=config.trainer.lr)
        self.each = max(1, config.trainer.batch_size // groups)

    def step(self) -> None:
        """Make a step of the masks, and an update under them."""
        groups = range(len(self.learned.rows))
        drawn = [torch.randint(len(own), (self.each,), generator=self.generator) for own in self.learned.rows]
        self.masked.rows = [own[chosen] for own, chosen in zip(self.learned.rows, drawn, strict=True)]
        fixed = {name: value.detach() for name, value in self.parameters.items()}
        self.logits.grad = lookahead.slope(self.logits.detach(), self.masked, fixed, self.learned.plan)
        self.masks.step()
        self.optimizer.zero_grad()
        weights = lookahead.masks(self.logits.detach(), self.learned.plan.lowest)
        torch.stack([self.masked(self.parameters, g, weights[g], None) for g in groups]).mean().backward()
        self.optimizer.step()
        self.done += 1

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""
        state = {
            "done": self.done, "logits": self.logits.detach(), "masks": self.masks.state_dict(),
            "optimizer": self.optimizer.state_dict(), "drawn": self.generator.get_state(),
            "buffers": dict(self.masked.objective.named_buffers()),
        }  # fmt: skip
        progress.save(self.done, state, {name: value.detach() for name, value in self.parameters.items()})

    def read(self, progress: Progress) -> None:
        """Go on from the last checkpoint, if there is one. Raises: UserError if it is damaged, or of other settings."""
        found = progress.read(self.logits.device)
        if found is None:
            return
        name, state = found
        weights = load_file(progress.folder / name)  # whose checksum holds
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(weights[name])
            self.logits.copy_(state["logits"])
            for name, value in self.masked.objective.named_buffers():
                value.copy_(state["buffers"][name])
        self.masks.load_state_dict(state["masks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["drawn"].cpu())
        self.done = state["done"]
