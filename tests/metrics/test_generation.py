import pytest
import torch

from semanticgan.metrics.generation import frechet_distance


@pytest.fixture
def features():
    random = torch.Generator().manual_seed(0)
    return torch.randn(500, 6, generator=random) @ torch.randn(6, 6, generator=random)


def test_a_set_has_no_distance_to_itself_in_any_order(features):
    assert frechet_distance(features, features.flip(0)) < 1e-9


def test_a_shift_counts_by_its_square(features):
    shift = torch.tensor([1.0, -2, 0, 0.5, 0, 0])
    assert frechet_distance(features, features + shift) == pytest.approx(5.25, rel=1e-5)


def test_of_one_number_it_is_the_difference_of_means_and_of_deviations():
    a, b = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0], [2.0]])
    assert frechet_distance(a, b) == pytest.approx((2 - (2 / 3) ** 0.5) ** 2)


def test_scaling_a_set_gives_the_trace_of_its_covariance(features):
    expected = torch.cov(features.T).trace() * (3 - 1) ** 2 + (features.mean(0) * 2).square().sum()
    assert frechet_distance(features, 3 * features) == pytest.approx(expected.item(), rel=1e-5)


def test_it_is_symmetric_and_works_with_fewer_members_than_features(features):
    few = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    assert frechet_distance(few, features) == pytest.approx(frechet_distance(features, few), rel=1e-6)
