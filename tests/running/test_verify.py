"""The ledger and `gradroute-verify`: honest runs pass, and broken masks, weights and freezing are caught."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gradroute.config.build import from_mapping
from gradroute.config.compose import composed
from gradroute.errors import UserError
from gradroute.records.run_reader import read_manifest, read_mapping
from gradroute.records.tables import read_ledger
from gradroute.routing import parameters, router
from gradroute.running.ledger_claims import ledger_claims
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of, present
from gradroute.tasks.base import create

SMALL = [
    "trainer=smoke", "trainer.train_limit=512", "trainer.test_limit=64", "trainer.batch_size=64", "trainer.epochs=2",
    "steps=[train,ablate,evaluate]", "model.hidden=[32]", "ledger.window=5", "ledger.every=3",
]  # fmt: skip
PARAMETERS = {  # SGTM: a slice of the decoder is for 0-4 alone
    "regions.reserved": {"parameters": {"decoder.linear0.weight": "0:8", "decoder.linear0.bias": "0:8"}},
    "routes.digits_5_9": {"top": 0.0, "reserved": 0.0},
}


def small_run(folder: Path, *overrides: str, routing: dict[str, Any] | None = None) -> Path:
    given = composed([*SMALL, f"output_dir={folder}", *overrides])
    for key, value in (routing or {}).items():
        OmegaConf.update(given, f"routing.{key}", value, force_add=True)
    (made,) = execute([from_mapping(given)])
    if isinstance(made, Exception):
        raise made
    return made


def failing(run: Path) -> list[str]:
    return [claim.what for claim in claims_of(run) if not claim.holds]


def test_an_honest_run_passes(smoke: Path, forked: Callable[..., Any], tmp_path: Path) -> None:
    result = forked("gradroute-verify", str(smoke), cwd=tmp_path)
    assert result.returncode == 0 and "digits_0_4's task loss never reached 'bottom'" in result.stdout, result.stdout
    assert "FAIL" not in result.stdout and "unrouted penalties" in result.stdout


@pytest.mark.parametrize("batches", ["mixed", "by_group"])
def test_parameter_routes_from_a_configuration_freeze_and_pass(tmp_path: Path, batches: str) -> None:
    run = small_run(tmp_path, f"trainer.batches={batches}", "ablation=reinitialise", routing=PARAMETERS)
    claims = [claim for claim in claims_of(run) if "reserved" in claim.what]
    assert all(claim.holds for claim in claims) and any("stayed bit-identical" in claim.what for claim in claims)
    rows = [row for row in read_ledger(run) if row["region"] == "reserved"]
    assert max(row["moved"] for row in rows if row["group"] == "all") > 0
    assert {row["routed"] for row in rows if row["group"] == "digits_5_9"} == {0.0}


def test_the_ledger_counts_points_weights_and_windows(tmp_path: Path) -> None:
    schedule = {"weight": 0.0, "start": 2, "ramp": 4, "stop": 12}
    run = small_run(tmp_path, "routing.labelled_fraction=0.5", routing={"routes.digits_0_4.bottom": schedule})
    rows = [row for row in read_ledger(run) if row["region"] == "bottom" and row["group"] != "all"]
    assert sum(row["points"] for row in rows) == 1024 and {row["group"] for row in rows} > {"default"}
    spans = {(row["from_step"], row["to_step"]): row for row in rows if row["group"] == "digits_0_4"}
    assert list(spans) == [(0, 5), (5, 10), (10, 15), (15, 16)]
    weights = [(row["weight_min"], row["weight_max"]) for row in spans.values()]
    assert weights == [(0.5, 1), (0, 0.25), (0, 1), (1, 1)] and failing(run) == []


def _leaky(activation: torch.Tensor, mask: object, keep: object, copy: bool) -> torch.Tensor:
    return activation.clone() if copy else activation


def test_a_broken_mask_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "weighed", _leaky)
    run = small_run(tmp_path)
    monkeypatch.undo()
    assert failing(run) == [
        "digits_0_4's task loss never reached 'bottom'",
        "digits_5_9's task loss never reached 'top'",
    ]


def test_a_weight_that_is_not_the_configured_one_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = router.Router.at_step
    monkeypatch.setattr(router.Router, "at_step", lambda self, step: at(self, 0))  # a schedule that never starts
    run = small_run(tmp_path, routing={"routes.digits_0_4.bottom": {"weight": 0.0, "start": 3}})
    monkeypatch.undo()
    assert "the weight of digits_0_4 in 'bottom' was as configured" in failing(run)


def test_a_region_that_was_not_kept_still_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(parameters, "still", lambda *_: nullcontext())
    run = small_run(tmp_path, "trainer.batches=by_group", routing=PARAMETERS)
    monkeypatch.undo()
    assert [what for what in failing(run) if "stayed bit-identical" in what]


@pytest.mark.parametrize(
    "overrides",
    [["ablation=mean"], ["ablation=resample"], ["ablation=remove"], ["ablation.region=[top,bottom]"],
     ["routing=none", "trainer.precision=bfloat16"], ["routing.labelled_fraction=0.1", "trainer.batches=by_group"],
     ["+routing.label_noise.digits_0_4={false_positive:0.2,false_negative:0.1}"]],
    ids=" ".join,
)  # fmt: skip
def test_runs_of_every_kind_come_out_again(tmp_path: Path, overrides: list[str]) -> None:
    assert failing(small_run(tmp_path, *overrides)) == []


def test_an_ablation_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ablation=mean: region 'reserved' consists of parameters"):
        small_run(tmp_path, "ablation=mean", routing=PARAMETERS)
    with pytest.raises(UserError, match="the layers around it could not be found"):
        small_run(tmp_path, "ablation=remove", "losses.certificates=[]", routing={"regions.top.site": "decoder"})
    assert list(tmp_path.iterdir()) == []


def test_a_group_may_have_no_data_points_but_not_lose_its_rows(small: Path) -> None:
    config, rows = from_mapping(read_mapping(small, read_manifest(small))), read_ledger(small)
    rest = [row for row in rows if row["group"] != "digits_0_4"]
    points = sum(row["points"] or 0 for row in rest if row["region"] == "top")
    claims = {claim.what: claim.holds for claim in ledger_claims(config, rest, points, {"digits_5_9"})}
    assert claims["no data point of 'digits_0_4' was in the training"] and all(claims.values())
    assert present(create(config)) == {"digits_0_4", "digits_5_9"}
    claims = {claim.what: claim.holds for claim in ledger_claims(config, rest, points, present(create(config)))}
    assert not claims["the weight of digits_0_4 in 'bottom' was as configured"]


def test_forward_masking_is_a_closed_route(tmp_path: Path) -> None:
    run = small_run(tmp_path, routing={"routes.digits_0_4.bottom": {"weight": 1.0, "forward": 0.0}})
    assert "digits_0_4's task loss never reached 'bottom'" in [claim.what for claim in claims_of(run) if claim.holds]


def test_a_group_whose_loss_has_no_weight_reaches_nothing(tmp_path: Path) -> None:
    run = small_run(tmp_path, "routing=none", "+losses.groups.digits_0_4=0")
    claims = {claim.what: claim.holds for claim in claims_of(run)}
    assert all(claims.values()) and "digits_0_4's task loss never reached 'top'" in claims


@pytest.mark.slow
def test_changed_files_and_metrics_are_caught(smoke: Path, tmp_path: Path, forked: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    shutil.copytree(smoke, run)
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text().replace("0.3", "0.1"))
    (run / "notes.txt").write_text("mine")
    names = failing(run)
    assert names[:2] == ["every file has the checksum in the manifest", "no file was added"]
    assert "the errors of decoder, region all, are reproduced by its weights" in names
    result = forked("gradroute-verify", str(run), cwd=tmp_path)
    assert result.returncode == 1 and "FAIL" in result.stdout
    assert forked("gradroute-verify", str(tmp_path), cwd=tmp_path).returncode == 2
    several = forked("gradroute-verify", str(run), str(tmp_path), str(smoke), cwd=tmp_path)
    assert several.returncode == 2 and several.stdout.count("claims hold") == 2 and "FAIL" in several.stdout
    several = forked("gradroute-verify", str(run), str(smoke), cwd=tmp_path)
    assert several.returncode == 1 and several.stdout.count("claims hold") == 2
    missing = forked("gradroute-verify", str(tmp_path), "--run-code", "--config-dir", "lab", cwd=tmp_path)
    assert (missing.returncode, missing.stderr) == (2, "error: --config-dir lab: must be a folder\n")


def test_a_run_without_a_ledger_or_with_code_is_not_taken_on_trust(tmp_path: Path, smoke: Path) -> None:
    assert failing(small_run(tmp_path, "ledger.enabled=false")) == ["the run has a ledger"]
    shutil.copytree(smoke, tmp_path / "code")
    config = tmp_path / "code" / "config.yaml"
    text = config.read_text().replace("predicate: null", "predicate: os:getcwd", 1)
    config.write_text(text.replace("labels:\n      - 0\n      - 1\n      - 2\n      - 3\n      - 4\n", "labels: []\n"))
    with pytest.raises(UserError, match="names code that is not part of gradroute, os:getcwd; give --run-code"):
        list(claims_of(tmp_path / "code"))
    with pytest.raises(UserError, match="not a run folder"):
        list(claims_of(tmp_path))
