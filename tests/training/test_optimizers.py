"""Optimizers without torch's compiler: torch's own updates, to the bit, and a run does not import the compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gradroute.config.schema import TrainerConfig
from gradroute.training.optimizers import KINDS, make_optimizer


def updates(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    """Make five updates and return the parameters after each, and the optimizer's state after the last."""
    draw, found = torch.Generator().manual_seed(1), list[torch.Tensor]()
    for number in range(5):
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
        model(torch.randn(8, 3, generator=draw)).square().mean().backward()
        optimizer.step()
        found += [parameter.detach().clone() for parameter in model.parameters()]
    return found + [value for state in optimizer.state.values() for value in state.values() if value is not None]


@pytest.mark.parametrize("name", KINDS)
def test_updates_are_torchs_to_the_bit(name: str) -> None:
    trainer = TrainerConfig(optimizer=name, lr=0.1, weight_decay=0.01, momentum=0.9 if name == "sgd" else 0.0)
    numbers = {"momentum": 0.9} if name == "sgd" else {"betas": (trainer.betas[0], trainer.betas[1])}
    runs = []
    for ours in (True, False):
        torch.manual_seed(0)
        model, called = nn.Linear(3, 2), list[int]()
        parameters = list(model.parameters())
        if ours:
            optimizer = make_optimizer([parameters], [trainer])
        else:
            optimizer = KINDS[name](parameters, lr=0.1, weight_decay=0.01, fused=True, **numbers)
        optimizer.register_step_pre_hook(lambda *given, called=called: called.append(1))
        runs.append(updates(optimizer, model))
        assert isinstance(optimizer, KINDS[name]) and len(called) == 5
    assert len(runs[0]) == len(runs[1]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


LANGUAGE = [
    "experiment=stories_era", "trainer=smoke", "dataset.stories=60", "dataset.test_stories=20", "dataset.length=32",
    "model.layers=2", "model.expand=[0]", "model.width=8", "model.heads=2", "model.added=4", "finetune=null",
    "relearn=null",
]  # fmt: skip
IMAGES = ["trainer=smoke", "trainer.train_limit=64", "trainer.test_limit=64", "model.hidden=[8]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [*IMAGES, "steps=[train,certify,ablate,evaluate]"],
        [*LANGUAGE, "steps=[train,ablate,evaluate]", "finetune=null", "relearn=null"],
    ],
)
def test_a_run_imports_neither_the_compiler_nor_what_it_does_not_need(settings: list[str], tmp_path: Path) -> None:
    """Each of these takes about a second of every start."""
    code = f"""
import sys
sys.argv = ["gradroute-run", *{settings}]
from gradroute.commands import run
try:
    run.main()
except SystemExit as ended:
    assert not ended.code, ended.code
slow = "torch._dynamo torch._inductor torchvision sympy matplotlib pandas scipy jinja2"
print(*(name for name in slow.split() if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
