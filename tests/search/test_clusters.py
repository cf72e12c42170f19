"""Clusters of gradients: found where there are some, and not where there are none."""

import itertools

import pytest
import torch

from gradroute.search.clusters import clustered, directions, rand_index, shuffled, sketched_positions, sketches


def blobs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(240) % count
    middles = 3 * torch.randn(count, 10, generator=generator)
    return middles[own] + 0.5 * torch.randn(240, 10, generator=generator), own


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_clusters_is_found_and_they_are_the_groups(count: int) -> None:
    points, own = blobs(count)
    found = clustered(points, (2, 3, 4), seed=0)
    assert len(found.centres) == count and found.real
    assert rand_index(torch.cdist(points, found.centres).argmin(1), own) == pytest.approx(1)


def test_shuffled_points_keep_their_columns_and_have_no_clusters() -> None:
    points, _ = blobs(2)
    mixed = shuffled(points, 1)
    torch.testing.assert_close(mixed.sort(0).values, points.sort(0).values)
    noise = torch.randn(240, 10, generator=torch.Generator().manual_seed(3))
    found = clustered(noise, (2, 3), seed=0)
    assert max(found.stable.values()) < 0.5 and abs(found.share - sum(found.placebos) / 19) < 0.02


def test_the_rand_index_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(3, (30,), generator=generator) for _ in range(2))
    pairs = list(itertools.combinations(range(30), 2))
    a, b = ([bool(one[i] == one[j]) for i, j in pairs] for one in (first, second))
    both, expected = sum(x and y for x, y in zip(a, b, strict=True)), sum(a) * sum(b) / len(pairs)
    assert rand_index(first, second) == pytest.approx((both - expected) / ((sum(a) + sum(b)) / 2 - expected))
    assert rand_index(first, first) == 1


def test_a_sketch_is_a_projection_of_the_gradient_of_a_map_at_the_site() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients, activations = (torch.randn(5, 7, 4, generator=generator) for _ in range(2))
    found = sketches(gradients, activations, seed=2)
    again = torch.Generator().manual_seed(2)
    first, second = (torch.randn(4, 4, generator=again) / 2 for _ in range(2))
    for point in range(5):
        whole = sum(torch.outer(gradients[point, p], activations[point, p]) for p in range(7))
        expected = (first.T @ whole @ second).flatten()
        torch.testing.assert_close(found[point], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_the_sketches_of_positions_sum_to_that_of_their_point() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients, activations = (torch.randn(5, 7, 20, generator=generator) for _ in range(2))
    each = sketched_positions(gradients.flatten(0, 1), activations.flatten(0, 1), seed=2)
    summed = directions(each.reshape(5, 7, -1).sum(1))
    torch.testing.assert_close(summed, sketches(gradients, activations, seed=2))
