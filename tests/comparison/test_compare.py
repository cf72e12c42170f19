"""`gradroute-compare` averages over seeds, shows published values and refuses mistakes in one line."""

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradroute.comparison.compare import compare, varying
from gradroute.comparison.runs import find_runs, natural, read_run
from gradroute.errors import UserError
from gradroute.records.seal import sealed
from gradroute.reporting.intervals import interval
from gradroute.reporting.published import PUBLISHED, setting


def fake_run(
    folder: Path,
    seed: int,
    value: float,
    name: str = "mnist_split",
    state: str = "finished",
    data: str = "d" * 64,
    **settings: Any,
) -> Path:
    """Make the smallest run folder that `compare` can read."""
    run = folder / name / "_".join(["run", *map(str, settings.values()), str(seed)]).replace("/", "")
    run.mkdir(parents=True)
    config = {"name": name, "seed": seed, "output_dir": "outputs", "trainer": {"lr": 0.1, "device": "cpu"}, **settings}
    rows = [
        {"head": "certificate", "region": "bottom", "group": g, "metric": "mse", "unit": "", "value": value * scale}
        for g, scale in (("digits_0_4", 1.0), ("digits_5_9", 0.25))
    ]
    files = {"config.yaml": yaml.safe_dump(config), "summary.json": json.dumps({"headline": rows}), "metrics.csv": "-"}
    for file, text in files.items():
        (run / file).write_text(text)
    sums = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in files.items()}
    manifest = {
        "state": state,
        "git_commit": "abc",
        "packages": {"gradroute": "0.1.0"},
        "dataset_sha256": data,
        "files": sums,
    }
    (run / "manifest.json").write_text(json.dumps(sealed(manifest)))
    return run


def printed(capsys: pytest.CaptureFixture[str], *paths: Path, **options: Any) -> list[dict[str, str]]:
    compare([str(path) for path in paths], form="csv", **options)
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_interval_is_students() -> None:
    # n = 4, standard deviation 2: t(3, 0.975) = 3.182446, times 2 / sqrt(4)
    values = [5 + d for d in (-math.sqrt(6), math.sqrt(6), 0.0, 0.0)]
    assert interval(values) == pytest.approx(3.182446305, rel=1e-8)
    assert math.isnan(interval([1.0]))


def test_seeds_are_put_together_and_settings_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("certificate", "bottom", "digits_0_4", "mse")
    monkeypatch.setitem(PUBLISHED, setting({}), {key: (0.32, 0.02)})
    for seed, value in enumerate((0.30, 0.32, 0.34)):
        fake_run(tmp_path, seed, value)
    fake_run(tmp_path, 0, 0.1, size=5)
    fake_run(tmp_path, 1, 0.1, size=5, losses={"correlation": 1.0})  # not the published setting
    rows = printed(capsys, tmp_path)
    low = {(row["size"], row["losses.correlation"]): row for row in rows if row["group"] == "digits_0_4"}
    plain, other, foreign = low["None", "None"], low["5", "None"], low["5", "1.0"]
    assert plain["n"] == "3" and float(plain["mean"]) == pytest.approx(0.32)
    assert float(plain["half_width"]) == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-4)
    assert (plain["published"], plain["agrees"]) == ("0.32", "yes")
    assert other["n"] == "1" and other["half_width"] == "" and other["agrees"] == "no"
    assert (foreign["published"], foreign["agrees"]) == ("", "")


def test_filters_sorting_and_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, value in enumerate((0.3, 0.1, 0.2)):
        fake_run(tmp_path, 0, value, size=number)
    rows = printed(capsys, tmp_path, sort="mean")
    means = [float(row["mean"]) for row in rows]
    assert means == sorted(means)
    assert {row["mean"] for row in printed(capsys, tmp_path, where=["size=1"])} == {"0.1", "0.025"}
    compare([f"{tmp_path}/*/run_0*"], form="markdown")
    markdown = capsys.readouterr().out
    assert markdown.startswith("| experiment | head |") and "mnist_split" in markdown
    compare([str(tmp_path)], form="latex")
    assert r"mnist\_split" in capsys.readouterr().out
    compare([str(tmp_path)])
    assert "0.3000" in capsys.readouterr().out


def test_names_with_numbers_are_in_their_order(tmp_path: Path) -> None:
    names = ["row10", "row9", "row1", "2", "0.5", "1e-3", "b", "a2"]
    assert sorted(names, key=natural) == ["1e-3", "0.5", "2", "a2", "b", "row1", "row9", "row10"]
    for number in (10, 9):
        fake_run(tmp_path, 0, 0.1, name=f"row{number}")
    assert [run.parent.name for run in find_runs([f"{tmp_path}/row*"])] == ["row9", "row10"]


def test_what_varies_leaves_seed_and_paths_out(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, s, 0.3, trainer={"lr": 0.1 * s, "device": f"cuda:{s}"}) for s in (1, 2)]
    assert varying([read_run(run) for run in runs]) == ["trainer.lr"]


def test_what_an_experiments_name_says_is_no_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        for seed in (0, 1):
            fake_run(tmp_path, seed, 0.1 * number + 0.01 * seed, name=f"mnist_table2_row{number}", decoders=number)
    rows = printed(capsys, tmp_path)
    assert "decoders" not in rows[0] and [row["n"] for row in rows] == ["2"] * 4


def test_settings_that_change_together_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        fake_run(tmp_path, 0, 0.3, a=number // 2, b=str(number // 2), c=number % 2)
    rows = printed(capsys, tmp_path)
    assert "b" not in rows[0] and {(row["a"], row["c"]) for row in rows} == {
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    }
    compare([str(tmp_path)])
    assert "these always change together with a: b" in capsys.readouterr().out


def test_unfinished_runs_are_named_and_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_run(tmp_path, 0, 0.3)
    fake_run(tmp_path, 1, 0.9, state="interrupted")
    compare([str(tmp_path)], form="csv")
    out, err = capsys.readouterr()
    assert "0.9" not in out and "not finished (interrupted)" in err


@pytest.mark.rendered
def test_a_sweep_says_what_failed_and_what_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [fake_run(tmp_path, 0, 0.3), fake_run(tmp_path, 1, 0.3, state="running")]
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    failed = [{"job": "seed=-1", "error": "seed=-1: must be <0>"}]
    (sweep / "runs.json").write_text(json.dumps({"runs": [f"../mnist_split/{r.name}" for r in runs], "failed": failed}))
    compare([str(sweep)], out=sweep)
    assert "not finished (killed" in (err := capsys.readouterr().err) and "seed=-1 (seed=-1: must be <0>)" in err
    html = (sweep / "comparison.html").read_text()
    assert "Not in the table" in html and "not finished (killed" in html and "must be &lt;0&gt;" in html
    (sweep / "runs.json").write_text('["a"]')
    with pytest.raises(UserError, match=r"runs\.json: damaged"):
        compare([str(sweep)])


def test_runs_with_the_same_numbers_but_another_seed_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not independent samples: counting them would make the interval too narrow."""
    for seed, value in enumerate((0.3, 0.4, 0.3, 0.3, 0.30000000000000004)):
        fake_run(tmp_path, seed, value)
    fake_run(tmp_path, 5, 0.3, size=2)  # a setting of its own
    compare([str(tmp_path)], form="csv", out=tmp_path / "out")
    out, err = capsys.readouterr()
    rows = {row["size"]: row for row in csv.DictReader(io.StringIO(out)) if row["group"] == "digits_0_4"}
    assert rows["None"]["n"] == "3" and rows["2"]["n"] == "1"
    assert float(rows["None"]["half_width"]) == pytest.approx(interval([0.3, 0.4, 0.30000000000000004]), rel=1e-4)
    page = (tmp_path / "out" / "comparison.html").read_text()
    for said in (err, page):
        (line,) = [
            line for line in said.splitlines() if "not counted, since their numbers are those of another" in line
        ]
        assert "run_2" in line and "run_3" in line and "run_0" not in line and "run_4" not in line
    compare([str(tmp_path)])
    assert "not counted, since their numbers are those of another seed to the bit: " in capsys.readouterr().out


def test_a_run_that_was_made_again_is_none_of_another_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two runs of one seed the later counts, without a note."""
    for folder in ("a", "b"):
        fake_run(tmp_path / folder, 0, 0.3)
    compare([str(tmp_path)], form="csv")
    out, err = capsys.readouterr()
    assert [row["n"] for row in csv.DictReader(io.StringIO(out))] == ["1", "1"] and "not counted" not in err


def test_runs_of_several_commits_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_run(tmp_path, 0, 0.3)
    other = fake_run(tmp_path, 1, 0.4)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(sealed(manifest | {"git_commit": "def-dirty"})))
    compare([str(tmp_path)])
    assert "made by 2 commits of gradroute: abc, def-dirty" in capsys.readouterr().out


def test_mistakes_are_refused(tmp_path: Path, command: Callable[..., Any]) -> None:
    run = fake_run(tmp_path / "a", 0, 0.3)
    fake_run(tmp_path / "b", 0, 0.3, data="e" * 64)
    unfinished = fake_run(tmp_path / "c", 0, 0.3, state="running")
    (tmp_path / "empty").mkdir()
    for paths, options, message in (
        ([tmp_path / "empty"], {}, "no run is in it"),
        ([tmp_path / "none*"], {}, "no run is in it"),
        ([tmp_path], {}, "runs of different data sets"),
        ([run], {"metric": "msq"}, "unknown metric 'msq'; did you mean mse?"),
        ([run], {"where": ["trainer.lt=1"]}, "did you mean trainer.lr"),
        ([run], {"where": ["trainer.lr"]}, "give key=value"),
        ([run], {"where": ["trainer.lr=7"]}, "no run is left"),
        ([run], {"sort": "man"}, "did you mean mean?"),
        ([unfinished], {}, "no run to show"),
    ):
        with pytest.raises(UserError) as error:
            compare([str(path) for path in paths], **options)
        assert message in str(error.value) and "\n" not in str(error.value)
    (run / "metrics.csv").write_text("x")
    with pytest.raises(UserError, match=r"metrics\.csv: damaged"):
        compare([str(run)])
    (run / "summary.json").write_text("{}")
    result = command("gradroute-compare", str(run), cwd=tmp_path)
    assert result.returncode == 2 and "summary.json: damaged" in result.stderr and "Traceback" not in result.stderr


def test_a_thousand_runs_are_found_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(200):
        fake_run(tmp_path, number % 5, 0.3, size=number // 5)
    assert len(find_runs([str(tmp_path)])) == 200
    started = time.perf_counter()
    assert len(printed(capsys, tmp_path)) == 80
    print(f"{5 * (time.perf_counter() - started):.1f} s for a thousand")  # reported, not asserted
