"""The Inception score is torch-fidelity's, and its closed forms."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from stages.metrics.inception_score import inception_score


@pytest.mark.parametrize("count", [100, 37])
def test_the_score_is_that_of_torch_fidelity(count: int) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (count, 20))
    theirs = isc_features_to_metric(torch.from_numpy(logits))
    ours = inception_score(logits)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    standard_error = theirs["inception_score_std"] / 3  # sqrt(10 / 9) / sqrt(10)
    assert ours.interval[1] - ours.value == pytest.approx(2.262157 * standard_error, rel=1e-6)  # Student's t, 9 degrees


def test_the_score_is_the_number_of_classes_for_sure_and_varied_pictures_and_1_for_unsure_ones() -> None:
    sure = 1e4 * np.eye(5)[np.arange(1000) % 5]
    assert inception_score(sure, splits=2).value == pytest.approx(5.0, rel=1e-2)  # shuffled parts are nearly balanced
    assert inception_score(np.zeros((50, 7))).value == pytest.approx(1.0)
