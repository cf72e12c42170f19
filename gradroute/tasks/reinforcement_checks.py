"""Check a configuration of reinforcement learning before anything is built."""

from collections.abc import Mapping, Sequence

from gradroute.config.components import step_names
from gradroute.config.limits import one_of, require, require_number
from gradroute.config.schema import Config
from gradroute.data.environments.base import Environment
from gradroute.errors import UserError
from gradroute.training.penalties import penalties_of

LARGEST_REWARD = 1e6
STEPS = ("train", "ablate", "evaluate", "report")
NAMED = ("train", "certify", "ablate", "unlearn", "finetune", "relearn", "steer")


def check_reinforcement(config: Config) -> None:
    """Raise UserError for settings that do not fit a policy that makes its own data."""
    require(config.environment is not None, "environment", "null", "an environment, such as grid, for this task")
    trainer, routing, losses = config.trainer, config.routing, config.losses
    for key, value in (("train_limit", trainer.train_limit), ("tune_steps", trainer.tune_steps),
                       ("unlearn_steps", trainer.unlearn_steps)):  # fmt: skip
        require(value is None, f"trainer.{key}", value, "null: a policy makes its own data")
    require(trainer.batches == "mixed", "trainer.batches", trainer.batches, "mixed: a batch's groups come as they come")
    require(not trainer.compile, "trainer.compile", trainer.compile, "false for a policy")
    whole = routing.labelled_fraction == 1 and not routing.label_noise and routing.unlabelled is None
    whole = whole and routing.compensate is None and all(rule.labelled is None for rule in routing.groups.values())
    right = "1 and without noise: environment.oversight says which endings are seen"
    require(whole, "routing.labelled_fraction", routing.labelled_fraction, right)
    for key, used in (("certificates", losses.certificates), ("error", losses.error),
                      ("l1, correlation or penalties", penalties_of(losses))):  # fmt: skip
        require(not used, f"losses.{key}", "given", "left out: a policy has none")
    require(not config.measures, "measures", "given", "left out: a policy is measured by its returns")
    for name in step_names(config):
        if name in NAMED and name not in STEPS:
            raise UserError(f"steps: '{name}' is not for a policy; use {', '.join(STEPS)} or a step of your own")


def check_endings(
    environment: Environment, rewards: Mapping[str, float] | None, gate: Mapping[str, float], seen: Sequence[str],
    groups: Sequence[str],
) -> None:  # fmt: skip
    """Raise UserError for an ending that the environment does not have, or a reward or gate out of range."""
    endings = tuple(environment.endings)
    for name in rewards or {}:
        one_of("task.rewards (ending)", name, endings)
        require_number(f"task.rewards.{name}", (rewards or {})[name], -LARGEST_REWARD, LARGEST_REWARD)
    for name in seen:
        one_of("task.seen", name, endings)
    for name, value in gate.items():
        one_of("task.gate (group)", name, tuple(groups))
        require_number(f"task.gate.{name}", value, 0, 1)
