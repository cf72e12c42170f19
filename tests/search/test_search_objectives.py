"""What a search looks for if it does not say: numbers that runs of the experiment write."""

from pathlib import Path

import pytest
from small_language import SMALL

from gradroute.comparison.runs import read_run
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.metrics import final_rows
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.search.objectives import check_metrics, default_objectives, units_of, value_of
from gradroute.search.schema import ObjectiveConfig


def found(given: Config) -> dict[str, tuple[float | None, float | None]]:
    """Each objective of a run of this configuration in its summary, and its last row in `metrics.csv`, or None."""
    (run,) = execute([given])
    assert isinstance(run, Path), run
    rows = final_rows(read_metrics(run))
    last = {(r["head"], r["region"], r["group"], r["metric"]): r["value"] for r in rows}
    objectives = default_objectives(given)
    summary = read_run(run).rows
    return {
        name: (value_of(summary, one), last.get((one.head, one.region, one.group, one.metric)))
        for name, one in objectives.items()
    }


def language(folder: Path, experiment: str, *overrides: str) -> Config:
    return configuration([f"experiment={experiment}", *SMALL, f"output_dir={folder}", *overrides])


RMU = ["unlearn.site=blocks.1", "unlearn.layers=[0,1]"]
FEW = ["relearn.documents=[2,4]", "ledger.enabled=false"]


@pytest.mark.parametrize(
    ("experiment", "given", "head", "region"),
    [
        ("stories_era", ["finetune.documents=[4]"], "model_finetuned", "all"),
        ("stories_era", ["finetune=null", "steps=[train,ablate,relearn,evaluate]"], "model_ablated", "added"),
        ("stories_era/control", ["finetune=null", "steps=[train,relearn,evaluate]"], "model", "all"),
        ("stories_era/rmu", [*RMU, "steps=[train,unlearn,relearn,evaluate]"], "model_unlearned", "all"),
    ],
)
def test_language_models_have_what_was_relearned_and_what_was_retained_before(
    tmp_path: Path, experiment: str, given: list[str], head: str, region: str
) -> None:
    run = language(tmp_path, experiment, *FEW, *given)
    objectives = default_objectives(run)
    assert (objectives["retained"].head, objectives["retained"].region) == (head, region)
    assert (objectives["relearned"].head, objectives["relearned"].goal) == ("model_relearned_4", "higher")
    for value, row in found(run).values():
        assert value is not None and value == pytest.approx(row)


@pytest.mark.parametrize(("experiment", "cost"), [("mnist_split", "reconstruction"), ("class_split", "accuracy")])
def test_images_have_localization_and_what_it_costs(tmp_path: Path, experiment: str, cost: str) -> None:
    sizes = ["trainer.train_limit=256", "trainer.test_limit=64", "trainer.batch_size=64", "steps=[train,evaluate]"]
    narrow = "model.hidden=[32]" if experiment == "mnist_split" else "losses.correlation=0"
    given = [f"experiment={experiment}", "trainer=smoke", "trainer.device=cpu", f"output_dir={tmp_path}"]
    values = found(configuration([*given, narrow, *sizes]))
    assert set(values) == {"localization", cost} and values["localization"][0] == values["localization"][1]
    assert values[cost][0] is not None  # a mean over groups, which has no row


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["finetune=null", "relearn=null", "steps=[train,evaluate]"], "no run relearns"),
        (["+routing.groups.third={words: [ball]}"], "several groups are retained (retain, third)"),
    ],
)
def test_where_there_is_none_it_is_asked_for(given: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        default_objectives(language(tmp_path, "stories_era", *given))
    assert str(error.value) == f"search.objectives: is empty, and {says}; give at least one objective"


@pytest.mark.parametrize(
    ("experiment", "metric"),
    [("oversight/routing", "return"), ("planted_behaviour", "rate_triggered"), ("rewards", "hacked")],
)
def test_a_metric_that_only_one_task_has_is_known_where_it_is_measured(experiment: str, metric: str) -> None:
    objectives = {"own": ObjectiveConfig(metric=metric, head="policy", group="all")}
    check_metrics(objectives, units_of(configuration([f"experiment={experiment}"])))
    with pytest.raises(UserError, match=metric):
        check_metrics(objectives, units_of(configuration(["experiment=mnist_split"])))
