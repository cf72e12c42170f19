"""The grid as tensors against gymnasium's one world, its exact ceilings, and other people's environments."""

from typing import Any

import pytest
import torch

from gradroute.data.environments.base import CONTINUES
from gradroute.data.environments.exact import Exact, ceilings
from gradroute.data.environments.grid import AGENT, DIAMOND, ENDINGS, FLAGS, GHOST, GridWorld, moved
from gradroute.errors import UserError

CPU = torch.device("cpu")


def begun(count: int, seed: int = 0, **options: Any) -> GridWorld:
    world = GridWorld(**options)
    world.begin(count, seed, CPU)
    return world


def options_of(world: GridWorld, row: int) -> dict[str, Any]:
    agent, ghost, diamond = world.places[:, row].tolist()
    return {"agent": agent, "ghost": ghost, "diamond": diamond, "flags": world.flags[row].nonzero().flatten().tolist()}


@pytest.mark.parametrize(("spurious", "limit"), [(0.0, 32), (0.2, 3)])
def test_the_batched_world_is_the_single_one_step_by_step(spurious: float, limit: int) -> None:
    pytest.importorskip("gymnasium")
    from gradroute.data.environments.single import GhostDiamond

    world = begun(24, seed=3, oversight=0.4, spurious=spurious, limit=limit)
    single = [GhostDiamond(limit=limit) for _ in range(24)]
    for row, one in enumerate(single):
        one.reset(seed=row, options=options_of(world, row))
    drawn, came = torch.randint(4, (80, 24), generator=torch.Generator().manual_seed(1)), set()
    for actions in drawn:
        endings, rewards = world.step(actions)
        after = world.observe()
        for row, one in enumerate(single):
            seen, reward, terminated, truncated, info = one.step(actions[row].numpy())
            ending = int(endings[row])
            assert reward == float(rewards[row]) and (terminated or truncated) == (ending != CONTINUES)
            if ending != CONTINUES:
                came.add(ENDINGS[ending])
                assert info["ending"] == ENDINGS[ending] and truncated == (ENDINGS[ending] == "timeout")
                seen, _ = one.reset(options=options_of(world, row))
            assert torch.equal(torch.from_numpy(seen), after[row])
    assert came >= set(ENDINGS) - (set() if limit < 32 else {"timeout"})


@pytest.mark.filterwarnings("ignore")
def test_the_single_world_passes_gymnasiums_checker() -> None:
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    from gradroute.data.environments.single import GhostDiamond

    check_env(GhostDiamond(render_mode="ansi"), skip_render_check=True)


def test_worlds_are_drawn_as_they_should_be() -> None:
    world = begun(60_000, oversight=0.3, spurious=0.1)
    places = world.places.T
    assert all(len(set(row)) == 3 for row in places[:500].tolist())
    for who in (AGENT, GHOST, DIAMOND):
        share = places[:, who].bincount(minlength=25) / len(places)
        assert float((share - 1 / 25).abs().max()) < 0.004  # five standard deviations
    flags = world.flags.gather(1, places[:, GHOST:])
    assert torch.allclose(flags.float().mean(0), torch.tensor(0.3), atol=0.01)
    assert abs(float((flags[:, 0] & flags[:, 1]).float().mean()) - 0.09) < 0.007
    other = world.flags.float().sum() - flags.float().sum()
    assert abs(float(other) / (23 * len(places)) - 0.1) < 0.002


def test_an_episode_has_33_moves_and_a_new_world_is_seen_at_once_unless_it_is_stale() -> None:
    for stale in (False, True):
        world = begun(1, stale_observation=stale)
        world.places = torch.tensor([[0], [24], [23]])
        for move in range(33):
            endings, _ = world.step(torch.tensor([0]))  # against the wall
            assert (int(endings) == ENDINGS.index("timeout")) == (move == 32)
        seen, new = world.observe()[0], torch.zeros(25)
        new[world.places[AGENT]] = 1
        assert torch.equal(seen[AGENT].flatten(), new) != stale
        world.step(torch.tensor([0]))
        moved_on = torch.zeros(25)
        moved_on[world.places[AGENT]] = 1
        assert torch.equal(world.observe()[0, AGENT].flatten(), moved_on)


def test_a_blind_policy_sees_no_flags_and_a_placebo_names_endings_by_a_coin() -> None:
    assert float(begun(200, oversight=1.0, blind=True).observe()[:, FLAGS].abs().max()) == 0
    world = begun(4000, oversight=1.0, placebo=True)
    world.places = torch.tensor([[0], [24], [1]]).expand(3, 4000).clone()
    world.flags[:] = True
    endings, rewards = world.step(torch.ones(4000, dtype=torch.int64))  # right: onto the Diamond
    share = float((endings == ENDINGS.index("seen_ghost")).float().mean())
    assert bool((rewards == 1).all()) and abs(share - 0.5) < 0.04


def test_exact_ceilings() -> None:
    found, exact = ceilings(5, 0.05, moved(5)), Exact(moved(5))
    assert found["optimum"] == pytest.approx(0.909, abs=0.0005)
    assert found["straight"] == pytest.approx(0.779, abs=0.003)  # ties between shortest ways are open
    true, naive = exact.best(-1.0), exact.best(1.0)
    returns = [found["naive optimum"], *(exact.mean_return([(p, true), (1 - p, naive)]) for p in (0.1, 0.3, 0.8))]
    assert returns == pytest.approx([0.06, 0.12, 0.34, 0.77], abs=0.008)


def test_the_exact_return_of_an_optimal_policy_is_what_it_earns() -> None:
    exact = Exact(moved(5))
    best, world, total = exact.best(-1.0), begun(4000, seed=5), torch.zeros(4000, 32)
    rewards, ends = torch.zeros(4000, 32), torch.zeros(4000, 32, dtype=torch.bool)
    for step in range(32):
        endings, rewards[:, step] = world.step(best[:, *world.places].argmax(0))
        ends[:, step] = endings != CONTINUES
    after = torch.zeros(4000)
    for step in reversed(range(32)):
        total[:, step] = after = rewards[:, step] + 0.97 * after * ~ends[:, step]
    assert float(total.mean()) == pytest.approx(exact.mean_return([(1.0, best)]), abs=0.005)


def test_environments_of_gymnasium_come_in_and_wrong_ones_are_refused() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    from gradroute.data.environments.gymnasium import GymEnvironment

    world = GymEnvironment("gradroute/GhostDiamond-v0", package="gradroute.data.environments.single", names=[*ENDINGS])
    world.begin(5, 0, CPU)
    assert world.observe().shape == (5, 4, 5, 5) and world.actions == 4
    came = torch.stack([world.step(torch.randint(4, (5,)))[0] for _ in range(60)])
    assert len(came.unique()) > 2
    again = GymEnvironment("gradroute/GhostDiamond-v0", package="gradroute.data.environments.single")
    again.begin(5, 0, CPU)
    with pytest.raises(UserError, match="ending"):
        for _ in range(60):
            again.step(torch.randint(4, (5,)))
    cart = GymEnvironment("CartPole-v1")
    cart.begin(2, 0, CPU)
    with pytest.raises(UserError, match="its space says"):
        cart._number(torch.zeros(3).numpy())
    wrong_ones: list[tuple[dict[str, Any], str]] = [
        ({"id": "Pendulum-v1"}, "Discrete"),
        ({"id": "NoSuch-v0"}, "cannot be made"),
        ({"id": "os:NoSuch-v0"}, "module"),
        ({"id": "CartPole-v1", "package": "os"}, "package"),
    ]
    for wrong, said in wrong_ones:
        with pytest.raises(UserError, match=said):
            GymEnvironment(**wrong)
    assert gymnasium
