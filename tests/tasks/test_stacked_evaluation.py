"""The models of a stack, measured in one pass: as each alone, with fewer forward passes, and never an old value."""

from typing import Any

import pytest
import torch

from gradroute.config.compose import configuration
from gradroute.running.runner import execute
from gradroute.tasks.base import create
from gradroute.tasks.stacked_evaluation import measured_together

SMALL = ["trainer=smoke", "trainer.train_limit=200", "trainer.test_limit=90", "trainer.batch_size=64"]
MNIST = [*SMALL, "model.hidden=[24]"]
CASES = {
    "zero": [*MNIST, "ablation=zero"],
    "mean": [*MNIST, "ablation=mean"],
    "remove": [*MNIST, "ablation=remove"],
    "reinitialise": [*MNIST, "ablation=reinitialise"],
    "several_decoders": [*MNIST, "model.decoders=2"],
}


def tasks_of(overrides: list[str], count: int = 3) -> list[Any]:
    """Return tasks of other seeds on the same data."""
    first = create(configuration([*overrides, "seed=0"]))
    return [first, *(create(configuration([*overrides, f"seed={n}"]), data=first.read) for n in range(1, count))]


def moved(tasks: list[Any]) -> None:
    """Change every weight of every task."""
    for task in tasks:
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.mul_(1.1).add_(0.01)


def assert_alike(together: list[Any], alone: list[Any]) -> None:
    assert [row[:3] for row in together] == [row[:3] for row in alone]
    torch.testing.assert_close(
        torch.tensor([row[3] for row in together]), torch.tensor([row[3] for row in alone]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_a_stack_is_measured_as_each_of_its_tasks_alone(case: str) -> None:
    tasks = tasks_of(CASES[case])
    ablations = [task.ablations() for task in tasks]
    alone = [list(task.measure(own)) for task, own in zip(tasks, ablations, strict=True)]
    assert alone[0] != alone[1]
    with measured_together(tasks, ablations):
        found = [list(task.measure(own)) for task, own in zip(tasks, ablations, strict=True)]
    for one, other in zip(found, alone, strict=True):
        assert_alike(one, other)


def test_one_model_is_called_for_all_and_each_result_serves_once() -> None:
    tasks = tasks_of([*MNIST, "ablation=remove"])
    called = [0] * len(tasks)

    def count(number: int) -> Any:
        def hook(*_: Any) -> None:
            called[number] += 1

        return hook

    for number, task in enumerate(tasks):
        task.model.register_forward_hook(count(number))
    with measured_together(tasks, [[] for _ in tasks]):
        for task in tasks:
            list(task.measure([]))
        assert called == [2, 0, 0]  # of 90 images, once for the certificates' encodings and once for the decoder
        moved(tasks)
        again = list(tasks[1].measure([]))
        assert called == [2, 2, 0]
    assert again == list(tasks[1].measure([]))
    assert [task.together for task in tasks] == [None, None, None]


@pytest.mark.parametrize(
    "others",
    [["trainer.test_limit=80"], ["experiment=class_split", "model.width=8"]],
    ids=["other_images", "another_task"],
)  # fmt: skip
def test_tasks_on_other_images_are_measured_one_by_one(others: list[str]) -> None:
    tasks = [create(configuration(MNIST)), create(configuration([*SMALL, *others]))]
    with measured_together(tasks, [[], []]):
        assert not any(getattr(task, "together", None) for task in tasks)


def test_no_task_and_one_task_need_nothing() -> None:
    with measured_together([], []):
        pass
    (task,) = tasks_of(MNIST, 1)
    with measured_together([task], [[]]):
        assert task.together is None


def test_a_stack_of_runs_measures_its_curve_and_its_end_together(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradroute.tasks.stacked_evaluation import Together

    made: list[int] = []
    measured = Together._measured

    def counted(self: Together) -> Any:
        made.append(len(self.tasks))
        return measured(self)

    monkeypatch.setattr(Together, "_measured", counted)
    given = [*MNIST, f"output_dir={tmp_path}", "trainer.epochs=2", "steps=[train,ablate,evaluate]", "stack=3"]
    outcomes = execute([configuration([*given, f"seed={seed}"]) for seed in range(3)])
    assert not any(isinstance(outcome, Exception) for outcome in outcomes)
    assert made == [3, 3]  # after the first epoch, and at the end
