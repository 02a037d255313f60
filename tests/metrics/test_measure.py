"""Batches of one size that lose no image and change no score."""

import numpy as np
import pytest

from difflid_jax.metrics.measure import equal_size_batches, measure, measure_all


def examples(sizes):
    generator = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        clean = generator.random((height, width, 3)).astype(np.float32)
        yield f"{i}", np.clip(clean + 0.1, 0, 1), clean


def test_batches_hold_images_of_one_size_and_lose_none():
    sizes = [(20, 30), (30, 20), (20, 30), (20, 30), (30, 20)]
    batches = list(equal_size_batches(examples(sizes), 2))
    assert [names for names, _, _ in batches] == [["0", "2"], ["1", "4"], ["3"]]
    assert all(len({image.shape for image in clean}) == 1 for _, _, clean in batches)


def test_batching_does_not_change_a_score():
    sizes = [(20, 30), (30, 20), (20, 30), (20, 30)]
    # Three of one size and one of another: both batches are filled up with copies.
    found = measure_all(examples(sizes), batch_size=4)
    assert sorted(found) == ["0", "1", "2", "3"]
    for name, restored, clean in examples(sizes):
        alone = measure(restored[None], clean[None])
        for metric, value in found[name].items():
            # Another batch size is another order of float32 sums.
            assert value == pytest.approx(float(alone[metric][0]), rel=1e-5)


def test_a_restoration_of_another_size_is_refused_by_name():
    clean = np.zeros((20, 30, 3), np.float32)
    with pytest.raises(ValueError, match=r"'x\.png': the restored image is \(20, 29, 3\), but its ground"):
        measure_all([("x.png", clean[:, 1:], clean)])
    with pytest.raises(ValueError, match=r"'y\.png': SSIM .* at least 11×11 pixels, found 8×30"):
        measure_all([("x.png", clean, clean), ("y.png", clean[:8], clean[:8])])
    twice = [("x.png", clean, clean)] * 2
    with pytest.raises(ValueError, match=r"'x\.png' was scored twice"):
        measure_all(twice)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        list(equal_size_batches([], 0))
