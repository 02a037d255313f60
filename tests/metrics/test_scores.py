"""The mean over images: by image, exact, and the same however the work was divided."""

import numpy as np
import pytest

from difflid_jax.metrics.protocols import score
from difflid_jax.metrics.scores import Scores, equal_size_batches, score_all


def scores_of(values: dict[str, float]) -> Scores:
    scores = Scores()
    for name, value in values.items():
        scores.add([name], {"psnr": np.array([value])})
    return scores


def test_the_mean_is_over_images_not_over_batches():
    scores = Scores()
    scores.add(["a", "b", "c"], {"psnr": np.array([10.0, 10.0, 10.0])})
    scores.add(["d"], {"psnr": np.array([30.0])})
    assert scores.mean() == {"psnr": 15.0}


def test_the_mean_is_bit_identical_in_any_order_and_division():
    values = np.random.default_rng(0).uniform(1e-8, 1e8, 1000)
    names = [str(i) for i in range(len(values))]
    together = Scores()
    together.add(names, {"psnr": values})
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(values))
        shares = [scores_of({names[i]: values[i] for i in part}) for part in np.array_split(order, 7)]
        merged = shares[0]
        for share in shares[1:]:
            merged.merge(share)
        assert merged.mean() == together.mean()
        assert merged.images == together.images


def test_an_image_scored_twice_is_refused():
    scores = scores_of({"a.png": 1.0})
    with pytest.raises(ValueError, match=r"'a\.png' was scored twice"):
        scores.add(["a.png"], {"psnr": np.array([2.0])})
    with pytest.raises(ValueError, match=r"'a\.png' was scored twice"):
        scores.merge(scores_of({"a.png": 2.0}))


def test_uneven_scores_are_refused():
    scores = scores_of({"a": 1.0})
    with pytest.raises(ValueError, match=r"'b' has the scores \['ssim'\], those before it \['psnr'\]"):
        scores.add(["b"], {"ssim": np.array([0.5])})
    with pytest.raises(ValueError, match=r"2 images, but psnr has shape \(1,\)"):
        scores.add(["b", "c"], {"psnr": np.array([1.0])})
    with pytest.raises(ValueError, match="no image has been scored"):
        Scores().mean()


def test_one_process_alone_gathers_its_own_scores_even_infinite_ones():
    scores = scores_of({"ä.png": np.inf, "b.png": 0.1})
    assert scores.of_all_processes().images == scores.images


def examples(sizes):
    generator = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        clean = generator.random((height, width, 3)).astype(np.float32)
        yield f"{i}", np.clip(clean + 0.1, 0, 1), clean


def test_batches_hold_pictures_of_one_size_and_lose_none():
    sizes = [(20, 30), (30, 20), (20, 30), (20, 30), (30, 20)]
    batches = list(equal_size_batches(examples(sizes), 2))
    assert [names for names, _, _ in batches] == [["0", "2"], ["1", "4"], ["3"]]
    assert all(len({picture.shape for picture in clean}) == 1 for _, _, clean in batches)


def test_batching_does_not_change_a_score():
    sizes = [(20, 30), (30, 20), (20, 30), (20, 30)]
    # Three of one size and one of another: both batches are filled up with copies.
    found = score_all(examples(sizes), batch_size=4)
    assert sorted(found.images) == ["0", "1", "2", "3"]
    for name, restored, clean in examples(sizes):
        alone = score(restored[None], clean[None])
        for metric, value in found.images[name].items():
            # Another batch size is another order of float32 sums.
            assert value == pytest.approx(float(alone[metric][0]), rel=1e-5)


def test_a_restoration_of_another_size_is_refused_by_name():
    clean = np.zeros((20, 30, 3), np.float32)
    with pytest.raises(ValueError, match=r"'x\.png': the restored picture is \(20, 29, 3\), its ground"):
        score_all([("x.png", clean[:, 1:], clean)])
    with pytest.raises(ValueError, match="at least 1, found 0"):
        list(equal_size_batches([], 0))
