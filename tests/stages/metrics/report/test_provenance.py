"""What stages cost is read from their manifests, as far as those say."""

from types import SimpleNamespace
from typing import Any

import pytest

from stages.metrics.report.provenance import cost_of, total_cost


def artifact(**notes: Any) -> Any:
    return SimpleNamespace(stage="prior", units=(), notes=notes)


def test_cost_holds_rates_and_the_share_of_waiting() -> None:
    cost = cost_of(
        artifact(seconds=10.0, device_seconds={"gpu": 40.0}, data_wait_share=0.25, tokens_per_second=7.0, attempt=2)
    )
    assert cost["rates"] == {"tokens": 7.0}
    assert (cost["seconds"], cost["device_seconds"], cost["data_wait_share"]) == (10.0, {"gpu": 40.0}, 0.25)
    assert cost["attempt"] == 2


def test_totals_add_up_by_kind_and_old_manifests_add_nothing() -> None:
    costs = [
        cost_of(artifact(seconds=10.0, device_seconds={"gpu": 40.0})),
        cost_of(artifact(seconds=5.0, device_seconds={"cpu": 8.0, "gpu": 2.0})),
        cost_of(artifact()),
    ]
    assert total_cost(costs)["seconds"] == pytest.approx(15.0)
    assert total_cost(costs)["device_seconds"] == pytest.approx({"gpu": 42.0, "cpu": 8.0})
