"""Compare whole updates of oversight/routing with a plain transcription of the published algorithm, in turn.

python scripts/oversight_speed.py [--worlds 512] [--steps 32] [--rounds 5] [OVERRIDE …]

The transcription moves all agents in one tensor operation, as the published code does, but begins each ended world by
itself with `torch.randperm`, and makes one pass of the experts for each kind of ending, with `detach` where the paper
stops the gradient. Both have the same networks, losses and optimizer. Printed are medians over the rounds: with
OMP_NUM_THREADS=1 in seconds of the processor, which other work changes little, else of wall time.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import nn
from turns import timed

from gradroute.config.compose import configuration
from gradroute.models.policy import Policy
from gradroute.running.exit_status import guarded
from gradroute.tasks.base import create
from gradroute.tasks.reinforcement import Reinforcement
from gradroute.training.fit import Fit
from gradroute.training.training import Training

SIZE, LIMIT, DISCOUNT = 5, 32, 0.97
MOVES = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])


class PlainWorlds:
    """The grid with places as coordinates; every ended world is begun by itself."""

    def __init__(self, count: int, oversight: float) -> None:
        self.count, self.oversight = count, oversight
        self.places = torch.zeros(3, count, 2, dtype=torch.int64)
        self.flags = torch.zeros(count, SIZE, SIZE)
        self.counter = torch.zeros(count, dtype=torch.int64)
        for world in range(count):
            self.reset(world)

    def reset(self, world: int) -> None:
        """Begin one world."""
        squares = torch.randperm(SIZE * SIZE)[:3]
        self.places[:, world] = torch.stack([squares // SIZE, squares % SIZE], 1)
        self.flags[world] = 0
        for who in (1, 2):
            row, column = self.places[who, world]
            self.flags[world, row, column] = float(torch.rand(()) < self.oversight)
        self.counter[world] = 0

    def observe(self) -> torch.Tensor:
        """Return the planes, `(count, 4, 5, 5)`."""
        planes = torch.zeros(self.count, 4, SIZE, SIZE)
        at = torch.arange(self.count)
        for who in range(3):
            planes[at, who, self.places[who, :, 0], self.places[who, :, 1]] = 1
        planes[:, 3] = self.flags
        return planes

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return kinds of endings (0 going on, 1 Diamond seen, 2 Ghost seen, 3 other) and whether it was reached."""
        agent = self.places[0] = (self.places[0] + MOVES[actions]).clamp(0, SIZE - 1)
        ghost, diamond = (agent == self.places[1]).all(1), (agent == self.places[2]).all(1)
        seen = self.flags[torch.arange(self.count), agent[:, 0], agent[:, 1]] > 0
        reached, done = ghost | diamond, ghost | diamond | (self.counter == LIMIT)
        kinds = torch.where(done, 3, 0)
        kinds[diamond & seen], kinds[ghost & seen] = 1, 2
        self.counter += 1
        for world in done.nonzero().flatten().tolist():
            self.reset(world)
        return kinds, reached.float()


class Plain:
    """The published algorithm, step by step."""

    def __init__(self, worlds: int, steps: int, oversight: float) -> None:
        self.steps, self.worlds = steps, PlainWorlds(worlds, oversight)
        self.model = Policy([4, SIZE, SIZE], len(MOVES), ["diamond", "ghost"])
        self.model.value = nn.Sequential(  # type: ignore[assignment]
            nn.Conv2d(4, 16, 1), nn.Flatten(), nn.Linear(400, 256), nn.Linear(256, 32), nn.Linear(32, 1)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-5)

    def act(self) -> tuple[torch.Tensor, ...]:
        """Return observations, actions, kinds and rewards, each `(steps, worlds, …)`."""
        found = []
        with torch.no_grad():
            for _ in range(self.steps):
                seen = self.worlds.observe()
                actions = torch.distributions.Categorical(logits=self.model.logits(seen)).sample()
                found.append((seen, actions, *self.worlds.step(actions)))
        return tuple(torch.stack(values) for values in zip(*found, strict=True))

    def update(self) -> None:
        """Make one update."""
        observations, actions, kinds, rewards = self.act()
        gained, after = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
        kind, last = torch.zeros_like(kinds), torch.zeros_like(kinds[0])
        for step in reversed(range(self.steps)):
            after = rewards[step] + DISCOUNT * after * (kinds[step] == 0)
            last = torch.where(kinds[step] == 0, last, kinds[step])
            gained[step], kind[step] = after, last
        seen, chosen, gained, kind = observations.flatten(0, 1), actions.flatten(), gained.flatten(), kind.flatten()
        values = self.model.value(seen).squeeze(1)
        loss = 0.5 * (gained - values).square().mean()
        for which in ((kind == 1), (kind == 2), (kind == 0) | (kind == 3)):
            if not bool(which.any()):
                continue
            own, gate = seen[which], self.model.gate
            assert gate is not None
            logit = gate(own)
            diamond, ghost = (self.model.experts[name](own) for name in ("diamond", "ghost"))
            share = torch.sigmoid(logit)
            if bool((kind[which][0] == 1) | (kind[which][0] == 2)):
                wanted = torch.full_like(logit, float(kind[which][0] == 1))
                loss = loss + 0.01 * nn.functional.binary_cross_entropy_with_logits(logit, wanted)
                share = share.detach()
                diamond, ghost = (diamond, ghost.detach()) if kind[which][0] == 1 else (diamond.detach(), ghost)
            policy = torch.distributions.Categorical(logits=self.model.output(share * diamond + (1 - share) * ghost))
            gain = (gained - values).detach()[which]
            each = -policy.log_prob(chosen[which]) * gain - 0.1 * policy.entropy()
            loss = loss + each.mean() * which.float().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def ours(overrides: list[str]) -> tuple[Reinforcement, Callable[[], None]]:
    """Return the task, and a function that makes one update of it by the training loop."""
    task = create(configuration(["experiment=oversight/routing", "trainer=paper", "trainer.device=cpu", *overrides]))
    assert isinstance(task, Reinforcement)
    order = torch.Generator().manual_seed(0)
    trainer = task.config.trainer
    fit = Fit([Training("speed", task.objective(), task.batch, task.points, trainer, order, source=task)],
              trainer.precision, task.device)  # fmt: skip
    rows = torch.arange(trainer.batch_size)

    def update() -> None:
        if fit.update == fit.updates:
            fit._seen, fit.update = fit._record(), 0
        fit._update([(rows, rows)])

    return task, update


def main() -> None:
    """Time both in turn and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--worlds", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments, given = parser.parse_known_args()
    sizes = [f"trainer.batch_size={arguments.worlds}", f"task.steps={arguments.steps}"]
    task, update = ours([*sizes, *given])
    _, float_update = ours([*sizes, "trainer.precision=float32", *given])
    plain = Plain(arguments.worlds, arguments.steps, 0.05)
    rows, actions = torch.arange(arguments.worlds), torch.randint(4, (arguments.steps, arguments.worlds))

    def walk(worlds: object) -> None:
        for own in actions:
            worlds.observe()  # type: ignore[attr-defined]
            worlds.step(own)  # type: ignore[attr-defined]

    parts: dict[str, Callable[[], object]] = {
        f"update, {task.config.trainer.precision}": update,
        "update, float32": float_update,
        "update, transcription in float32": plain.update,
        f"acting, {task.config.trainer.precision}": lambda: task.batch(rows),
        "acting, transcription": plain.act,
        "the worlds alone": lambda: walk(task.environment),
        "the worlds alone, transcription": lambda: walk(plain.worlds),
    }
    found = timed(parts, arguments.rounds)
    for name, seconds in found.items():
        low, high = min(seconds), max(seconds)
        print(f"{name:36} {statistics.median(seconds):.4f}   ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
