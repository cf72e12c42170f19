"""What a run's page shows about steering; older runs are read, and damaged files are refused."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from matplotlib import pyplot as plt

from gradroute.errors import UserError
from gradroute.records.seal import sealed
from gradroute.reporting.plots_language import steering_likelihood
from gradroute.reporting.run_data import RunData
from gradroute.reporting.steering_tables import read_steering, steering_tables, steering_verdict

MANIFEST: dict[str, Any] = {"state": "running", "files": {}}
OLD: dict[str, Any] = {  # as older runs have it, without likelihoods
    "unit": 0,
    "nearest": [[" oak", 0.5, "routed"]],
    "frequencies": [[0.0, 0.1, 0.2]],
    "completions": [["One day", 0.0, "he ran"], ["One day", 2.5, "oak"]],
}
TIMES = {"related": 6.5, "matched": None, "routed": 19.1}
EFFECTS = {
    "times": TIMES,
    "related": [0.7, 0.1, 40],
    "matched": [-0.1, None, 9],
    "routed": [1.2, 0.2, 30],
    "other": [-0.2, 0.01, 900],
}
NEW = OLD | {
    "words": {"routed": ["oak"], "related": ["yew"], "matched": ["hat", "bed"]},
    "dimensions": [
        {"unit": unit, "sign": 1.0, "measured": {"kl_0.1": {"strength": 2.5, "kl": 0.1, **EFFECTS},
                                                "kl_0.3": {"strength": 4.0, "kl": 0.3, **EFFECTS}}}
        for unit in (0, 7)
    ],
}  # fmt: skip


def kept(folder: Path, content: object) -> Path:
    (folder / "steering.json").write_text(json.dumps(content))
    return folder


def test_what_older_runs_wrote_is_read(tmp_path: Path) -> None:
    assert read_steering(tmp_path, MANIFEST) is None
    assert read_steering(kept(tmp_path, OLD), MANIFEST) == OLD
    tables = steering_tables(OLD)
    assert [title for title, *_ in tables] == [
        "Completions by the value added to dimension 0", "Tokens nearest to dimension 0"
    ]  # fmt: skip
    assert tables[0][1:3] == (["prompt", "+0", "+2.5"], [["One day", "he ran", "oak"]])


def test_likelihoods_are_shown_with_their_intervals(tmp_path: Path) -> None:
    found = read_steering(kept(tmp_path, NEW), MANIFEST)
    assert found == NEW
    completions, likelihoods, _ = steering_tables(NEW)
    assert completions[1] == ["prompt", "+0", "+2.5 (KL 0.1)"]
    ratios = ["+0.700 ± 0.100", "-0.100", "+1.200 ± 0.200", "-0.200 ± 0.010"]
    assert likelihoods[2][0] == ["0", 0.1, 2.5, *ratios, "6.50", "", "19.10"]
    assert [row[0] for row in likelihoods[2]] == ["0", "0", "7", "7"]
    assert "Matched: hat, bed." in likelihoods[3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found.update(dimensions=[{}]),
        lambda found: found.update(dimensions=3),
        lambda found: found["dimensions"][0].update(unit="0"),
        lambda found: found["dimensions"][0]["measured"]["kl_0.1"].update(related=[0.1, 0.1]),
        lambda found: found["dimensions"][0]["measured"]["kl_0.1"].update(strength="x"),
        lambda found: found["dimensions"][0]["measured"]["kl_0.1"].pop("kl"),
        lambda found: found["dimensions"][0]["measured"]["kl_0.1"].update(times={"related": 1.0}),
        lambda found: found.update(words={"routed": [1]}),
        lambda found: found.update(completions=[["One day", "much", "oak"]]),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Any) -> None:
    found = copy.deepcopy(NEW)
    damage(found)
    with pytest.raises(UserError, match=r"steering\.json: damaged"):
        read_steering(kept(tmp_path, found), MANIFEST)


def test_the_verdict_says_how_much_likelier_words_become() -> None:
    own = {"related_llr": math.log(2), "matched_llr": 0.0, "routed_llr": math.log(5), "routed_times": 9.0}
    heads = {"steered": own, "steered_placebo": {"related_llr": math.log(1.1), "related_times": 1.25}}
    rows = [
        {"head": head, "region": region, "metric": metric, "value": value * share}
        for region, share in (("kl_0.3", 1.0), ("kl_0.1", 0.5))
        for head, found in heads.items()
        for metric, value in (found | {"kl": 0.3, "strength": 4.0}).items()
    ]
    assert steering_verdict(rows) == [
        "Steering at a KL of 0.3 nats per token makes held-out related words 2.00 times, words of their frequency 1.00 "
        "times, routed words 5.00 times, related words along random dimensions 1.10 times as likely where they stand "
        "(geometric mean).",
        "At any position it makes routed words 9.00 times, related words along random dimensions 1.25 times as likely.",
    ]
    assert steering_verdict([]) == []


def test_the_plot_has_every_kind_of_word_and_the_random_dimensions(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(sealed(MANIFEST)))
    run = cast(RunData, SimpleNamespace(folder=kept(tmp_path, NEW)))
    figure = steering_likelihood(run)
    assert figure is not None
    (axes,) = figure.axes
    drawn = {str(line.get_label()): np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()}
    assert drawn["related words, random dimensions"] == [0.1, 0.3] and axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {  # type: ignore[union-attr]
        "related words, random dimensions", "routed words", "related words, held out", "words of their frequency"
    }  # fmt: skip
    plt.close(figure)
    kept(tmp_path, OLD)
    assert steering_likelihood(run) is None
