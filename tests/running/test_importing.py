"""Garbage is not looked for while a command imports torch, and afterwards as before."""

import gc
import sys

import pytest

from gradroute.running.exit_status import importing


def test_no_garbage_is_looked_for_while_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    before = gc.get_freeze_count()
    with pytest.raises(ValueError), importing():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
        raise ValueError
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_with_torch_at_hand_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("what a job made would never be freed"))
    with importing():
        assert gc.isenabled()
