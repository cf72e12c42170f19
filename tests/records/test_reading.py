"""The guarded ways to read: what passes comes out as it was, and what may not pass is named."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gradroute.config.compose import configuration
from gradroute.errors import UserError, plain_text
from gradroute.models.base import plan_of
from gradroute.records import safe_reading
from gradroute.records.atomic import write_atomically
from gradroute.records.run_reader import read_manifest
from gradroute.records.seal import sealed
from gradroute.routing.routes import Route
from gradroute.running.ledger_claims import _closed_in, _weights_in
from gradroute.tasks.image_memory import require_batch_memory, require_image_memory
from gradroute.training import memory
from gradroute.training.memory import require_memory
from gradroute.training.weights import read_weights

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text("abc ü", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain)
def test_plain_data_comes_back_from_json_and_yaml(value: Any) -> None:
    import json

    import yaml

    assert safe_reading.read_json(json.dumps(value).encode(), "here") == value
    assert safe_reading.read_yaml(yaml.safe_dump(value, allow_unicode=True).encode(), "here") == value


@pytest.mark.parametrize(
    "document",
    ["", "~", "3", "- a\n- [b]", "a: |\n  two\n  lines\nb: >\n  folded\n  text\n", "a: 1\nb: {c: [[]]}\na: 2",
     "'<<': [~]", "[1.5, 1e3, .inf, 0x1f, 0o17, 017, 1_000, 1:30, ~, null, no, '5', \"1\", -0.0, +1, 0b11, '']"],
    ids=range(8),
)  # fmt: skip
def test_yaml_is_read_as_its_package_reads_it(document: str) -> None:
    import yaml

    assert repr(safe_reading.read_yaml(document.encode(), "here")) == repr(yaml.safe_load(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: &x 1\nb: *x", "aliases"), ("!!python/name:os.system", "tag"), ("a: 2024-01-01", "a date is not plain"),
     ("[" * 40 + "]" * 40, "levels"), ("1: 2", "a key is not text"),
     ("[a]: 2", "a key is not text"), ("a\n---\nb", "more than one document"), ("a: [", "damaged"),
     ("a: 0x" + "f" * 20, "64 bits"),
     ("a: " + "1:" * 20000 + "1", "more than 10000 characters")],
    ids=range(10),
)  # fmt: skip
def test_yaml_beyond_plain_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        safe_reading.read_yaml(text.encode(), "here")
    assert str(error.value).startswith("here: damaged") and str(error.value).isprintable()


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", "", ".", "a\nb", "a\\b", "c:d", "./a", "link", "out/b"]
)
def test_a_name_that_leads_away_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "out").symlink_to(tmp_path)
    with pytest.raises(UserError):
        safe_reading.place(tmp_path / "run", name)


def test_links_inside_and_deep_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("text")
    (tmp_path / "d").symlink_to(tmp_path / "a" / "b" / "c.txt")
    assert safe_reading.read_bytes(tmp_path, "d") == safe_reading.read_bytes(tmp_path, "a/b/c.txt") == b"text"


def test_pipes_and_too_much_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        safe_reading.read_bytes(tmp_path, "pipe")
    (tmp_path / "config.yaml").touch()
    os.truncate(tmp_path / "config.yaml", safe_reading.LIMITS[".yaml"] + 1)
    with pytest.raises(UserError, match="may have at most 4194304"):
        safe_reading.read_bytes(tmp_path, "config.yaml")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8", ">f8"])
def test_arrays_come_back(shape: tuple[int, ...], dtype: str) -> None:
    given = {"a": np.arange(np.prod(shape)).reshape(shape).astype(dtype), "b/c": np.asfortranarray(np.eye(2, 3))}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **given)  # type: ignore[arg-type]
    found = safe_reading.read_arrays(buffer, "here")
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_a_manifest_tells_damage_in_itself(tmp_path: Path) -> None:
    import json

    manifest = sealed({"state": "finished", "seed": 1, "files": {}})
    write_atomically(tmp_path / "manifest.json", json.dumps(manifest))
    assert read_manifest(tmp_path)["seed"] == 1
    write_atomically(tmp_path / "manifest.json", json.dumps({**manifest, "seed": 2}))
    with pytest.raises(UserError, match="its SHA-256 differs from the one in it"):
        read_manifest(tmp_path)


def test_weights_are_compared_before_they_are_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    with torch.device("meta"):
        untaken = torch.nn.Linear(3, 2)
    save_file({f"model.{name}": tensor for name, tensor in layer.state_dict().items()}, tmp_path / "model.safetensors")
    read_weights(tmp_path, {"model": untaken}, load=False)
    copy = torch.nn.Linear(3, 2)
    read_weights(tmp_path, {"model": copy})
    assert torch.equal(copy.weight, layer.weight) and torch.equal(copy.bias, layer.bias)
    for other, message in (
        (torch.nn.Linear(3, 4), "of shape"),
        (torch.nn.Linear(3, 2, bias=False), "not part of the module"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path, {"model": other})


def test_sizes_beyond_the_machine_are_refused_by_the_key_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    device, words = (
        torch.device("cpu"),
        ("model.hidden=[100]", "lower model.hidden", "trainer.batch_size=9", "lower it"),
    )
    monkeypatch.setattr(memory, "machine_memory", lambda device: 1000)
    require_memory(600, 400, device, *words)
    with pytest.raises(UserError, match=r"^model.hidden=\[100\]: .* GiB are needed .*; lower model.hidden$"):
        require_memory(601, 400, device, *words)
    with pytest.raises(UserError, match=r"^trainer.batch_size=9: .* GiB are needed .*; lower it$"):
        require_memory(400, 601, device, *words)


def test_a_model_of_images_is_counted_to_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(["model.hidden=[100]", "model.encoding=10", "losses.certificates=[]"])
    found = {"shape": [5, 10], "classes": 10, "groups": list(config.routing.groups)}

    def require(points: int | None) -> None:
        plan = plan_of(config.model)
        if points is None:
            require_image_memory(config, plan, found, 50, torch.device("cpu"))
        else:
            require_batch_memory(config, plan, plan.build(**found), torch.zeros(1, 50), 50, points)

    numbers = 2 * (50 * 100 + 100 * 10) + 100 + 100 + 50  # weights of both halves; biases of all layers but the code
    monkeypatch.setattr(memory, "machine_memory", lambda device: 4 * numbers)
    require(None)
    with pytest.raises(UserError, match=r"lower trainer.batch_size"):
        require(1000)
    monkeypatch.setattr(memory, "machine_memory", lambda device: 4 * numbers - 1)
    with pytest.raises(UserError, match=r"model.hidden=\[100\].*lower model.hidden"):
        require(None)
    config.losses.certificates = ["top", "bottom"]
    numbers += 2 * (100 + 100 * 50 + 100 + 50)  # each a decoder that sees one unit at least
    monkeypatch.setattr(memory, "machine_memory", lambda device: 4 * numbers)
    require(None)
    monkeypatch.setattr(memory, "machine_memory", lambda device: 4 * numbers - 1)
    with pytest.raises(UserError, match=r"model.hidden=\[100\]"):
        require(None)


def test_control_characters_are_shown_as_escapes() -> None:
    assert plain_text("a\x1b[31mü\n\u202e") == r"a\x1b[31mü\n\u202e"


numbers = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0])
times = st.integers(0, 12)


@settings(deadline=None)
@given(numbers, numbers, times, times, st.none() | times, times, times)
def test_extremes_of_a_route_in_a_window_are_those_of_every_step(
    weight: float, forward: float, start: int, ramp: int, stop: int | None, first: int, length: int
) -> None:
    route, row = Route(weight, forward, start, ramp, stop), {"from_step": first, "to_step": first + length + 1}
    values = [route.at(step) for step in range(first, first + length + 1)]
    assert _weights_in(route, row) == (min(w for w, _ in values), max(w for w, _ in values))
    assert _closed_in(route, row) == all(0 in pair for pair in values)
