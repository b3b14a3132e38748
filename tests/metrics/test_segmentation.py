"""Scores against torchmetrics, small cases by hand, and their laws."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from semanticgan.metrics.segmentation import accuracy, bootstrap_interval, confusion, dice, iou


def draw(seed, shape=(3, 17, 13), num_classes=5):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, num_classes, shape, generator=generator)
    label[torch.rand(shape, generator=generator) < 0.1] = 255
    return torch.randint(0, num_classes, shape, generator=generator), label


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_torchmetrics(seed):
    pred, label = draw(seed)
    conf = confusion(pred, label, 5)
    assert conf.dtype == torch.int64
    options = {"num_classes": 5, "ignore_index": 255}
    assert torch.equal(conf, multiclass_confusion_matrix(pred, label, **options))
    close = {"check_dtype": False, "rtol": 1e-6, "atol": 0}  # torchmetrics computes in float32
    torch.testing.assert_close(iou(conf), multiclass_jaccard_index(pred, label, average="none", **options), **close)
    torch.testing.assert_close(dice(conf), multiclass_f1_score(pred, label, average="none", **options), **close)
    torch.testing.assert_close(accuracy(conf), multiclass_accuracy(pred, label, average="micro", **options), **close)


def test_by_hand():
    label = torch.tensor([0, 0, 0, 1, 1, 255], dtype=torch.uint8)
    pred = torch.tensor([0, 0, 1, 1, 0, 3], dtype=torch.uint8)
    conf = confusion(pred, label, 3)
    assert conf.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert iou(conf)[:2].tolist() == [2 / 4, 1 / 3]
    assert dice(conf)[:2].tolist() == [4 / 6, 2 / 4]
    assert math.isnan(iou(conf)[2]) and math.isnan(dice(conf)[2])
    assert accuracy(conf).item() == 3 / 5


def test_a_class_missed_or_invented_scores_zero():
    missed = confusion(torch.tensor([0, 0]), torch.tensor([0, 1]), 2)
    invented = confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert iou(missed)[1] == iou(invented)[1] == dice(missed)[1] == dice(invented)[1] == 0


def test_confusions_add_up():
    (pred_a, label_a), (pred_b, label_b) = draw(0), draw(1)
    both = confusion(torch.cat([pred_a, pred_b]), torch.cat([label_a, label_b]), 5)
    assert torch.equal(confusion(pred_a, label_a, 5) + confusion(pred_b, label_b, 5), both)


def test_batches_of_confusions():
    confs = torch.stack([confusion(*draw(seed), 5) for seed in range(3)])
    for score in (iou, dice, accuracy):
        assert torch.equal(score(confs), torch.stack([score(conf) for conf in confs]))


def test_nothing_to_score():
    conf = confusion(torch.zeros(4, dtype=torch.int64), torch.full((4,), 255), 2)
    assert not conf.any()
    assert math.isnan(accuracy(conf))


@pytest.mark.parametrize(("pred", "label", "message"), [([2], [0], "prediction"), ([0], [2], "label"), ([-1], [0], "prediction")])
def test_class_ids_out_of_range(pred, label, message):
    with pytest.raises(ValueError, match=message):
        confusion(torch.tensor(pred), torch.tensor(label), 2)


def test_bootstrap_interval():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std() / 20  # the normal interval; 1000 resamples know their quantiles to a few per cent
    assert low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.15 * error)
    assert bootstrap_interval([*values, float("nan")]) == (low, high) == bootstrap_interval(torch.tensor(values))
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_bootstrap_interval_of_few_cases():
    """Too few to promise 95 %."""
    assert bootstrap_interval([0.5] * 10) == (0.5, 0.5)
    for cases in ([], [0.5] * 9, [0.5] * 9 + [float("nan")]):
        assert all(math.isnan(v) for v in bootstrap_interval(cases))
