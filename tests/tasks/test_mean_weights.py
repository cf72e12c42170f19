"""Mean gradient weights under partial labels, and routes that compensate for missing labels."""

import sys
from pathlib import Path

import pytest
from small_language import config, refused

from gradroute.commands.tokens import main as tokens_main
from gradroute.config.compensation import weights_of
from gradroute.data.text.token_shares import shares_of
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.mean_weights import mean_weights

FEW = ("routing.labelled_fraction=0.5", "dataset.stories=120")


@pytest.mark.parametrize("unlabelled", ["retain", "null"])
@pytest.mark.parametrize("tokens", ["frequent", "all"])
def test_mean_weights_are_those_of_each_token(tmp_path: Path, tokens: str, unlabelled: str) -> None:
    changes = (f"routing.groups.forget.tokens={tokens}", f"routing.unlabelled={unlabelled}")
    task = LanguageModelling(config(tmp_path, "stories_era", *FEW, *changes, "routing.routes.retain.original=0.9"))
    by_region = {(mean.group, mean.region): mean for mean in mean_weights(task)}
    corpus, weights = task.data.train.corpus, []
    shares = shares_of(task.data, task.config.routing, task.names, task.labelled)["forget"]
    other = 0.9 if unlabelled == "retain" else 1.0
    for token, document in enumerate(corpus.documents.tolist()):
        if int(task.train_groups[document]) == 0:
            share = float(shares[token])
            weights.append(share * -0.75 + 1 - share if int(task.labelled[document]) == 0 else other)
    mean = by_region["forget", "original"]
    assert mean.weight == -0.75 and mean.every == pytest.approx(sum(weights) / len(weights), abs=1e-6)
    assert mean.routed == pytest.approx(mean.labelled * -0.75 + (1 - mean.labelled) * other)
    assert mean.expected == pytest.approx(0.5 * -0.75 + 0.5 * other)
    assert mean.labelled == int((task.labelled == 0).sum()) / int((task.train_groups == 0).sum())
    assert ("forget", "added") not in by_region and by_region["retain", "original"].weight == 0.9


@pytest.mark.parametrize(("fraction", "lost", "limit", "weight"), [
    (1.0, 0.0, 10, 0.0), (0.5, 0.0, 10, -1.0), (0.25, 0.0, 10, -3.0), (0.5, 0.5, 10, -3.0), (0.05, 0.0, 10, -10.0),
    (0.05, 0.0, 100, -19.0),
])  # fmt: skip
def test_compensation_makes_the_mean_weight_0(
    tmp_path: Path, fraction: float, lost: float, limit: float, weight: float
) -> None:
    changes = [f"routing.labelled_fraction={fraction}", "routing.compensate=labels"]
    changes += [f"routing.compensate_limit={limit}"] if limit != 10 else []
    changes += [f"routing.label_noise.forget.false_negative={lost}"] if lost else []
    given = config(tmp_path, "stories_era", *changes)
    found = weights_of(given.routing)
    assert found["forget"]["original"] == pytest.approx(weight) and given.routing.routes["forget"]["original"] == -0.75
    share = fraction * (1 - lost)
    assert share * weight + 1 - share == pytest.approx(0) or weight == -limit
    task = LanguageModelling(given)
    assert task.router.routes["forget", "original"].weight == pytest.approx(weight)


def test_a_compensated_run_is_verified(tmp_path: Path) -> None:
    (run,) = execute([config(tmp_path, "stories_era", *FEW, "routing.compensate=labels", "steps=[train,evaluate]",
                             "relearn=null", "finetune=null")])  # fmt: skip
    assert isinstance(run, Path), run
    claims = list(claims_of(run))
    assert all(claim.holds for claim in claims) and any("weight of forget" in claim.what for claim in claims)


@pytest.mark.parametrize(("change", "message"), [
    ("routing.compensate=words", "routing.compensate"),
    ("routing.compensate_limit=-1", "routing.compensate_limit=-1"),
    ("routing.groups.forget.labelled=1.5", "routing.groups.forget.labelled=1.5: must be from 0 to 1"),
])  # fmt: skip
def test_mistakes(tmp_path: Path, change: str, message: str) -> None:
    refused(lambda: config(tmp_path, "stories_era", change), message)


def test_a_schedule_cannot_be_compensated(tmp_path: Path) -> None:
    timed = "routing.routes.forget.original={weight:0,start:3}"
    refused(lambda: config(tmp_path, "stories_era", "routing.compensate=labels", timed), "as a route has a schedule")


@pytest.mark.parametrize(("more", "said"), [
    ([], "set routing.compensate=labels"), (["routing.compensate=labels"], None),
    (["routing.compensate=labels", "routing.compensate_limit=0.5"], "raise routing.compensate_limit"),
    (["routing.labelled_fraction=1"], None),
])  # fmt: skip
def test_the_command_warns_of_a_mean_weight_above_0(
    tmp_path: Path, more: list[str], said: str | None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small = ["dataset.stories=120", "model.width=16", "model.heads=2", "trainer=smoke", f"output_dir={tmp_path}"]
    overrides = ["experiment=stories_era", "routing.labelled_fraction=0.25", *small, *more]
    monkeypatch.setattr(sys, "argv", ["gradroute-tokens", *overrides])
    with pytest.raises(SystemExit) as ended:
        tokens_main()
    out = capsys.readouterr().out
    (page,) = (tmp_path / "stories_era").iterdir()
    assert ended.value.code == 0 and "Mean weights over documents" in out
    assert ("warning: " in out) == (said is not None)
    if said:
        assert said in out and said in page.read_text()
