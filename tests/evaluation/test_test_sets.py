"""Images with depth become a test set of their own: made hazy, the same every time, and said so."""

import numpy as np

from difflid_jax.data.pipeline import HazeSpec
from difflid_jax.evaluation.test_sets import open_test_set


def test_the_photographs_are_made_hazy_alike_each_time_and_by_index():
    haze = HazeSpec(airlight=(0.8, 0.9), seed=3)
    test = open_test_set("", source="photographs", haze=haze)
    again = open_test_set("", source="photographs", haze=haze)
    images = list(test.images)
    assert len(images) == test.images.total == 2
    for image, other in zip(images, again.images, strict=True):
        same = again.images[image["index"]]
        np.testing.assert_array_equal(image["hazy"], other["hazy"])
        np.testing.assert_array_equal(image["hazy"], same["hazy"])
        assert np.abs(image["hazy"].astype(int) - image["clean"]).mean() > 10
    summary = "photographs, made hazy with A 0.8…0.9, β 0.6…1.8, seed 3"
    assert test.about["summary"] == summary and test.about["haze"]["seed"] == 3
    other_seed = open_test_set("", source="photographs", haze=HazeSpec(airlight=(0.8, 0.9), seed=4))
    assert not np.array_equal(other_seed.images[0]["hazy"], images[0]["hazy"])
