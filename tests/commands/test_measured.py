"""Tables of the results are what the scripts that they name print of the numbers that are kept beside them."""

import sys
from pathlib import Path

import pytest
from scripted import script

MEASURED = Path(__file__).parents[2] / "outputs" / "measured"
TABLES = {
    "planted_table": "planted_behaviour", "pretrained_table": "pretrained_era", "profiles_table": "profiles",
    "rewards_table": "rewards",
}  # fmt: skip


@pytest.mark.parametrize(("name", "numbers"), TABLES.items())
def test_a_table_is_that_of_its_numbers(
    name: str, numbers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(MEASURED / f"{numbers}.csv")])
    script(name).main()
    in_results(capsys.readouterr().out)


@pytest.mark.parametrize(("part", "seeds"), [("labels", 5), ("noise", 5), ("capacity", 3)])
def test_a_table_of_the_second_language_is_that_of_its_numbers(
    part: str, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = str(MEASURED / "second_language.csv")
    script("second_language_study").main(["--part", part, "--table", "--seeds", str(seeds), "--results", numbers])
    in_results(capsys.readouterr().out.partition("\n\n")[0])


def test_the_table_of_tuned_baselines_is_that_of_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = str(MEASURED / "unlearning_sweep.csv")
    script("unlearning_sweep").main(["--table", "--trials", "12", "--results", numbers])
    in_results(capsys.readouterr().out.strip().partition("\n\n")[0])


def test_the_tables_of_steering_are_those_of_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = str(MEASURED / "steering.csv")
    script("steering_study").main(["STORIES.txt", "--family", "family", "--table", "--results", numbers])
    paired, each = capsys.readouterr().out.strip().split("\n\n")
    in_results(paired)
    head, strongest = each.splitlines()[:2], [line for line in each.splitlines() if line.startswith("| family | 0.3 |")]
    in_results("\n".join([*head, *strongest]))


def in_results(table: str) -> None:
    """Require every line of a table to stand in the results."""
    results = (MEASURED / "README.md").read_text().splitlines()
    lines = table.splitlines()
    assert len(lines) > 3 and [line for line in lines if line not in results] == []
