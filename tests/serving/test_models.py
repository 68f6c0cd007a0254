"""Several models behind one endpoint: what each has of its own."""

from __future__ import annotations

from mmsr_ray.config import load
from mmsr_ray.serving.models import models_of


def test_each_model_has_its_folder_and_the_folder_that_it_follows() -> None:
    served = {"model.path": "a", "serving.model_name": "A", "serving.weights_watch": "runs/a/best", "serving.models.B": "b"}
    served |= {"serving.models.C": "c", "serving.models_watch.C": "runs/c/best"}
    found = models_of(load(None, ["data.train=x", "data.test=x", *(f"{key}={value}" for key, value in served.items())]))
    assert {name: (own.model.path, own.serving.model_name, own.serving.weights_watch) for name, own in found.items()} == {
        "A": ("a", "A", "runs/a/best"),
        "B": ("b", "B", ""),
        "C": ("c", "C", "runs/c/best"),
    }
