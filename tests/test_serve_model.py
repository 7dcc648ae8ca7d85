"""The pyfunc from the registry in a fresh process, and through `mlflow models serve`."""

import pytest

from tests.serve_model import prove
from tests.stages.publishing.published import publish_made_up


@pytest.mark.thorough
def test_mlflow_serves_the_generators_pictures(tmp_path):
    published = publish_made_up(tmp_path / "runs")
    proof = prove(tmp_path / "runs", tmp_path / "out")
    assert list(proof.pictures) == ["generator", "pyfunc", "served"]
    assert {picture.shape for picture in proof.pictures.values()} == {(32, 32, 3)}
    assert proof.pictures["generator"].std() > 1
    assert proof.same
    assert proof.code.startswith(str(tmp_path / "out/mlflow/models"))
    assert proof.refusal.startswith("400: ")
    assert "label 'no such class' is unknown. This prior knows discs, squares, stripes" in proof.refusal
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "generator.png",
        "pyfunc.png",
        "served.png",
    ]
    assert published.folder.exists("bundle/SHA256SUMS")
