import numpy as np
import pytest

from semanticgan.metrics.risk import ranks, risk_coverage, spearman, spearman_interval


def test_equal_values_share_their_mean_rank():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_spearman_sees_the_order_alone():
    x = np.linspace(0, 3, 20)
    assert spearman(x, np.exp(5 * x)) == pytest.approx(1) and spearman(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(spearman(x, np.zeros(20)))


def test_spearman_without_ties_is_the_textbook_formula():
    random = np.random.default_rng(0)
    a, b = random.permutation(30).astype(float), random.permutation(30).astype(float)
    assert spearman(a, b) == pytest.approx(1 - 6 * ((a - b) ** 2).sum() / (30 * (30**2 - 1)))


def test_interval_holds_the_correlation_and_repeats():
    random = np.random.default_rng(0)
    a = random.normal(size=60)
    b = a + random.normal(size=60)
    low, high = spearman_interval(a, b)
    assert 0 < low < spearman(a, b) < high < 1 and spearman_interval(a, b) == (low, high)
    assert np.isnan(spearman_interval(a, np.zeros(60))).all()


def test_risk_over_coverage():
    score = np.array([0.5, 1.0, 0.0, 0.9])
    assert risk_coverage(score, [3.0, 1.0, 4.0, 2.0]) == pytest.approx([0, 0.05, 0.2, 0.4])
    best, random = risk_coverage(score, -score), risk_coverage(score, np.arange(4.0))
    assert best[-1] == random[-1] == pytest.approx(1 - score.mean()) and (best <= random + 1e-12).all()


def test_interval_is_as_wide_as_95_per_cent():
    """Bonett and Wright's standard error of Spearman's correlation in Fisher's z (2000)."""
    random = np.random.default_rng(0)
    a = random.normal(size=400)
    b = a + random.normal(size=400)
    r, z = spearman(a, b), np.arctanh(spearman_interval(a, b))
    assert (z[1] - z[0]) / 2 == pytest.approx(1.96 * np.sqrt((1 + r * r / 2) / 397), rel=0.1)
