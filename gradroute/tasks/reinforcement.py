"""Reinforcement learning: a policy acts, and how an episode ended says where its gradients go (GR section 4.3)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import nn

from gradroute.config.doors import TARGET
from gradroute.config.limits import MANY, Between
from gradroute.config.schema import Config, TrainerConfig
from gradroute.config.targets import build
from gradroute.data.environments.base import UNFINISHED, Environment
from gradroute.data.environments.grid import GridWorld
from gradroute.data.groups import Part, assign
from gradroute.errors import UserError
from gradroute.models.base import plan_of
from gradroute.models.policy import Policy
from gradroute.routing import Site
from gradroute.routing.ablation import Ablation
from gradroute.tasks.base import Task
from gradroute.tasks.early_stopping import EarlyStopping
from gradroute.tasks.evaluation import Head, activations_at
from gradroute.tasks.parts import assemble
from gradroute.tasks.policy_objective import GATE, SEEN, SEEN_RETURN, Coefficients, PolicyObjective
from gradroute.tasks.policy_pictures import Arrays, Walks, maps, walk
from gradroute.tasks.policy_plan import UNITS, schedule
from gradroute.tasks.probe import Measurement
from gradroute.tasks.reinforcement_checks import check_endings, check_reinforcement
from gradroute.tasks.rollouts import Act, Rollout, Rollouts, propagated, returns
from gradroute.training.devices import computing
from gradroute.training.objectives import Batch, Term

EVALUATION = 2**31  # seed of the worlds that policies are measured in, the same for every run


class Reinforcement(Task):
    """The task of earning rewards in an environment. Raises: UserError for every mistake in the configuration.

    A data point is `steps` steps of one world; `trainer.batch_size` is the number of worlds. The groups' rules read the
    column `ending`: how a step's episode ended, or `unfinished`.

    Args:
        updates: updates in an epoch. share: share of all updates that is made, see `schedule`.
        steps: steps of each world in a batch. discount: of rewards, by step.
        rewards: the reward at an episode's end, by ending, 0 where not named; null is the environment's own.
        gate: what the gate is to be in the steps of a group, by group; empty for no such loss.
        seen: the endings that a labeller sees.
        coefficients: weights of the losses.
        early_stopping: keep the weights of the epoch with the best seen return as well, until this many epochs have
            brought no better one; null for none.
    """

    kind = "reinforcement"
    own_units = UNITS  # of returns and of the terms
    plots = tuple(
        f"gradroute.reporting.plots_policy.{name}" for name in ("returns", "walks", "policy_maps", "gate_by_group")
    )
    curve_points, acts = 1000, True
    followed = ("episodes",)

    def __init__(
        self, config: Config, data: Any = None, run: Path | None = None,
        updates: Annotated[int, Between(1, MANY)] = 100, share: Annotated[float, Between(0, 1)] = 1.0,
        steps: Annotated[int, Between(1, 10_000)] = 32, discount: Annotated[float, Between(0, 1)] = 0.97,
        rewards: dict[str, float] | None = None, gate: dict[str, float] | None = None, seen: list[str] | None = None,
        coefficients: Coefficients | None = None, early_stopping: Annotated[int | None, Between(1, MANY)] = None,
    ) -> None:  # fmt: skip
        super().__init__(config, data, run)
        self.data, self.read, self.steps, self.discount, self.gate = data, data, steps, discount, gate or {}
        self.environment, trainer = self.made_environment(), config.trainer
        self.endings = [*self.environment.endings, UNFINISHED]
        check_endings(self.environment, rewards, self.gate, seen or [], list(config.routing.groups))
        told = Part(self.endings, torch.arange(len(self.endings)), {"ending": self.endings})
        groups = assign(config.routing, told, told, config.seed)
        self.names, self.routed = groups.names, groups.routed.to(self.device)
        told_by = [(config.environment or {})[TARGET], *self.endings, *self.found["shape"], self.environment.actions]
        self.sha256 = hashlib.sha256(json.dumps(told_by).encode()).hexdigest()
        self.epochs, own = schedule(trainer.epochs, updates, share)
        self.points, self.walks = own * trainer.batch_size, Walks(self.epochs)
        self.rewards: torch.Tensor | None = None
        if rewards is not None:
            self.rewards = torch.tensor([rewards.get(name, 0.0) for name in self.endings], device=self.device)
        self.seen = torch.tensor([name in (seen or []) for name in self.endings], device=self.device)
        self.coefficients = coefficients or Coefficients()
        torch.manual_seed(config.seed)
        self.plan = plan_of(config.model, run)
        model = self.plan.build(**self.found).to(self.device)
        kept = self.plan.build(**self.found).to(self.device) if early_stopping else None
        seed = config.seed * 2 + 2**32  # not one of the evaluation's
        self.rollouts = Rollouts(self.environment, trainer.batch_size, steps, seed, self.device)
        self.parts = assemble(model, config.routing, config.losses, self.names, self.environment.observe()[:1])
        if self.gate and GATE not in self.router.regions:
            raise UserError("task.gate: needs a region 'gate', whose units say which expert acts; or give task.gate={}")
        self.stopper = EarlyStopping(model, kept, early_stopping) if kept is not None and early_stopping else None
        self.try_ablations()

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError for settings that do not fit a policy."""
        super().check(config)
        check_reinforcement(config)

    @property
    def found(self) -> dict[str, Any]:
        """The shape of an observation, the number of actions, and the groups' names."""
        return {"shape": list(self.environment.shape), "actions": self.environment.actions, "groups": list(self.names)}

    @property
    def memberships(self) -> int:
        """The number of steps of all worlds in the whole training."""
        return self.epochs * self.points * self.steps

    def fitted(self, trainer: TrainerConfig, points: int) -> TrainerConfig:
        """Make the epochs that give the share of the updates."""
        return replace(trainer, epochs=self.epochs)

    @property
    def source(self) -> "Reinforcement":
        """The task itself: its worlds, the choice of early stopping, and its walks belong in a checkpoint."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what makes the next batches."""
        stopper = self.stopper.state_dict() if self.stopper else {}
        return {"rollouts": self.rollouts.state_dict(), "stopper": stopper, "walks": self.walks.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rollouts.load_state_dict(state["rollouts"])
        self.walks.load(state["walks"])
        if self.stopper:
            self.stopper.load_state_dict(state["stopper"])

    def made_environment(self) -> Environment:
        """Return an environment with no worlds yet."""
        return cast(Environment, build(self.config.environment or {}, "environment"))

    def objective(self) -> PolicyObjective:
        """Return the training loss."""
        scales, partial = self.config.losses.groups, bool((self.routed == -1).any())
        return PolicyObjective(self.model, self.names, self.router, self.coefficients, scales, self.gate, partial)

    def act(self, model: nn.Module | None = None, serve: str | None = None) -> Act:
        """Return a policy: the model, or one of its experts alone."""
        acting: Any = model or self.model
        if serve is None and not hasattr(acting, "logits"):
            return lambda observations: acting(observations)[0]
        return lambda observations: acting.logits(observations, serve)

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Act in all worlds, and return the objective's arguments; `chosen` only says how many worlds there are."""
        with computing(self.config.trainer.precision, self.device):
            return self.told(self.rollouts.collect(self.act()))

    def told(self, rollout: Rollout) -> Batch:
        """Return the objective's arguments for a rollout; group numbers last."""
        ends, number = rollout.endings, propagated(rollout.endings, len(self.endings) - 1)
        gained = true = returns(rollout.rewards.float(), ends, self.discount)
        if self.rewards is not None:  # the number of no ending is that of `UNFINISHED`, the last
            gained = returns(torch.where(ends >= 0, self.rewards[ends], 0.0), ends, self.discount)
        return rollout.observations, rollout.actions, gained, true, self.seen[number], self.routed[number]

    def after_epoch(self, epoch: int, step: int, means: dict[Term, float]) -> dict[Term, float]:
        """Return the means with the seen return by seen step, choose weights by it, and note a walk."""
        if means[SEEN]:
            means = means | {SEEN_RETURN: means[SEEN_RETURN] / means[SEEN]}
            if self.stopper:
                self.stopper.see(epoch, means[SEEN_RETURN])
        if self.walks.due(epoch) and isinstance(environment := self.made_environment(), GridWorld):
            self.walks.walks.append((step, walk(environment, self.act(serve=self.steered()), self.device)))
        return means

    def steered(self) -> str | None:
        """Return the expert that is served when the policy is steered: the first of two; None with one."""
        experts = list(getattr(self.model, "experts", ()))
        return experts[0] if len(experts) > 1 else None

    def modules(self) -> dict[str, nn.Module]:
        """Return the model, and the one of early stopping."""
        return {"model": self.model} | ({"stopped": self.stopper.kept} if self.stopper else {}) | self.made

    def make(self, name: str) -> nn.Module:
        """Raise UserError: no step makes further policies."""
        raise UserError(f"task=reinforcement: has no module '{name}'")

    def example(self) -> torch.Tensor:
        """Return the worlds as they are seen now."""
        return self.environment.observe()[:16]

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Return activations in the worlds as they are seen now, by site name."""
        return activations_at(self.model, sites, self.environment.observe())

    def heads(self, ablations: list[Ablation]) -> Iterator[tuple[Head, Act]]:
        """Yield every policy that is measured: as trained, by each expert alone, stopped early, and ablated."""
        yield Head("policy", "all"), self.act()
        if self.steered():
            for name in self.model.experts:  # type: ignore[union-attr]
                yield Head("policy_steered", self._region(str(name))), self.act(serve=str(name))
        if self.stopper:
            yield Head("policy_stopped", "all"), self.act(self.stopper.kept)
        for ablation in ablations:
            with ablation.applied(self.model) as ablated:
                yield Head("policy_ablated", ablation.name), self.act(ablated)

    def _region(self, expert: str) -> str:
        """Return the region at an expert's output; the expert's name if there is none."""
        sites = {region.sites[0].name: name for name, region in self.router.regions.items()}
        return sites.get(f"experts.{expert}", expert)

    @torch.no_grad()
    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Yield the returns of every policy in fresh worlds, the same for all, and what the gate says there."""
        count = self.config.trainer.test_limit or self.config.trainer.batch_size
        for head, act in self.heads(ablations):
            fresh = [Rollouts(self.made_environment(), count, self.steps, EVALUATION, self.device) for _ in range(2)]
            observations, _, _, true, seen, group = self.told(fresh[0].collect(act))
            greedy = self.told(fresh[1].collect(act, greedy=True))[3]
            yield "all", head, "return", float(true.mean())
            yield "all", head, "greedy_return", float(greedy.mean())
            yield "all", head, "seen_return", float(true[seen].mean()) if bool(seen.any()) else 0.0
            for number, name in enumerate(self.names):
                yield name, head, "share", float((group == number).float().mean())
            if head.name == "policy" and GATE in self.router.regions:
                yield from self._gate(observations, group)

    def _gate(self, observations: torch.Tensor, group: torch.Tensor) -> Iterator[Measurement]:
        """Yield the gate's mean in the steps of each group."""
        shown = activations_at(self.model, self.router.regions[GATE].sites, observations.flatten(0, 1))
        share = self.router.regions[GATE].select(shown).sigmoid().mean(-1).view(group.shape)
        for number, name in enumerate(self.names):
            own = share[group == number]
            if len(own):
                yield name, Head("gate", GATE), "gate", float(own.mean())

    def samples(self, ablations: list[Ablation]) -> tuple[Arrays, dict[str, Any]]:
        """Return masks, walks and maps, and the environment's shape, actions and exact ceilings."""
        masks = {f"mask/{site.name}": self.router.masks[site.name] for site in self.router.sites}
        arrays = masks | self.walks.arrays()
        if isinstance(self.environment, GridWorld) and isinstance(self.model, Policy):
            arrays |= maps(self.model, self.environment, self.device)
        names = {"shape": list(self.environment.shape), "actions": self.environment.actions, "steered": self.steered()}
        return arrays, names | dict(self.environment.pictures())
