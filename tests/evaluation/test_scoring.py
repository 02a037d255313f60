"""Every image is scored once, alone, and in the data set's order, with any batches and processes."""

import json
import math
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.evaluation import scoring
from difflid_jax.evaluation.scoring import Result, evaluate, over_seeds
from difflid_jax.evaluation.tables import remarkable
from difflid_jax.metrics.fidelity import psnr, ssim
from difflid_jax.metrics.protocols import PROTOCOLS


class Images:
    """Seven generated pairs of two sizes; `process` of `processes` has every so-manieth."""

    total = 7

    def __init__(self, process: int = 0, processes: int = 1):
        self.indices = range(process, self.total, processes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        random = np.random.default_rng(index)
        clean = random.integers(0, 256, (16, 20 + 4 * (index % 2), 3), np.uint8)
        hazy = (clean * (0.9 - index / 10) + 255 * (0.1 + index / 10)).astype(np.uint8)
        return {"name": f"image_{index}", "index": index, "hazy": hazy, "clean": clean}

    def __iter__(self):
        return (self[index] for index in self.indices)


def darker(hazy: np.ndarray) -> np.ndarray:
    return 1.2 * hazy - 0.2


@pytest.fixture
def gathered(monkeypatch):
    """Run `evaluate` as each of several processes; what they send meets what the others have sent."""

    def run(processes: int, restore=darker, **keywords):
        sent: list[bytes] = []
        monkeypatch.setattr(scoring, "bytes_of_all_processes", lambda mine: sent.append(mine) or sent)
        outcomes = []
        for _ in range(2):  # the second time every process sees what all have sent
            outcomes, complete = [], sent if len(sent) == processes else None
            for process in range(processes):
                if complete:
                    monkeypatch.setattr(scoring, "bytes_of_all_processes", lambda mine, all=complete: all)
                try:
                    outcomes.append(
                        evaluate(restore, Images(process, processes), method="m", progress=False, **keywords)
                    )
                except (ValueError, RuntimeError) as error:
                    outcomes.append(error)
        return outcomes

    return run


def test_scores_are_those_of_each_image_alone_in_order():
    result = evaluate(darker, Images(), method="m", progress=False)
    assert [image["name"] for image in result.images] == [f"image_{i}" for i in range(7)]
    for scores, image in zip(result.images, Images(), strict=True):
        hazy, clean = (image[role].astype(np.float32)[None] / 255 for role in ("hazy", "clean"))
        restored = np.clip(darker(hazy), 0, 1)
        assert scores["psnr"] == pytest.approx(float(psnr(restored, clean)[0]), abs=1e-5)
        assert scores["ssim"] == pytest.approx(float(ssim(restored, clean)[0]), abs=1e-6)
    for metric in ("psnr", "ssim"):
        assert result.mean[metric] == math.fsum(image[metric] for image in result.images) / 7


def test_images_further_from_the_truth_than_the_hazy_one_are_counted():
    images = Images()
    worse = [i for i in range(7) if i % 3 == 0]

    def restore(hazy):
        i = next(i for i in range(7) if np.array_equal(np.rint(hazy * 255), images[i]["hazy"]))
        return 1 - hazy if i in worse else images[i]["clean"] / np.float32(255)

    result = evaluate(restore, images, method="m", progress=False)
    assert [i for i, row in enumerate(result.images) if row["worse"]] == worse
    assert result.mean["worse"] == pytest.approx(3 / 7)
    assert "worse" not in evaluate(restore, images, method="m", progress=False, restores=False).mean


def test_batches_and_processes_change_nothing(gathered):
    alone = evaluate(darker, Images(), method="m", progress=False)
    batched = evaluate(darker, Images(), method="m", batch_size=3, progress=False)
    assert [image["name"] for image in batched.images] == [image["name"] for image in alone.images]
    for one, other in zip(alone.images, batched.images, strict=True):
        assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-5)
    for result in gathered(3):
        assert result.images == alone.images and result.mean == alone.mean
    assert all(r.mean == alone.mean for r in gathered(9))  # two processes have no image


def test_an_error_in_one_process_is_the_error_of_all(gathered):
    def breaks_on_the_last(hazy):
        return np.full_like(hazy, np.nan) if hazy.mean() > 0.8 else hazy

    outcomes = gathered(2, breaks_on_the_last)
    assert all(isinstance(outcome, ValueError) and "image_" in str(outcome) for outcome in outcomes)


def test_an_image_scored_twice_or_never_is_no_result(monkeypatch):
    def twice(mine):
        return [mine, mine]

    def never(mine):
        share = json.loads(mine)
        return [json.dumps(share | {"rows": share["rows"][1:]}).encode()]

    for gather in (twice, never):
        monkeypatch.setattr(scoring, "bytes_of_all_processes", gather)
        with pytest.raises(RuntimeError, match="scored twice or never"):
            evaluate(darker, Images(), method="m", progress=False)


@pytest.mark.parametrize(
    ("restore", "said"),
    [
        (lambda hazy: np.where(hazy > 0.5, np.inf, hazy), "not finite"),
        (lambda hazy: (hazy * 255).astype(np.uint8), "uint8"),
        (lambda hazy: hazy[:-1], r"\(15, 20, 3\)"),
    ],
)
def test_what_is_no_restored_image_is_named(restore, said):
    with pytest.raises(ValueError, match=rf"m.*image_0.*{said}"):
        evaluate(restore, Images(), method="m", progress=False)


def test_an_image_that_takes_too_much_memory_is_named():
    def exhausts(hazy):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    with pytest.raises(ValueError, match=r"image_0.*20×16.*tiles"):
        evaluate(exhausts, Images(), method="m", progress=False)


def test_time_leaves_out_the_first_call_of_each_size():
    seen = set()

    def slow_at_first(hazy):
        time.sleep(0 if hazy.shape in seen else 0.3)
        seen.add(hazy.shape)
        return hazy

    assert evaluate(slow_at_first, Images(), method="m", progress=False).seconds < 0.1
    seen.clear()
    one = Images()
    one.total, one.indices = 1, range(1)
    assert evaluate(slow_at_first, one, method="m", progress=False).seconds is None
    seen.clear()
    assert evaluate(slow_at_first, one, method="m", warm_up=True, progress=False).seconds < 0.1


def test_fid_is_of_the_sets_and_zero_for_equal_ones(monkeypatch):
    monkeypatch.setattr(scoring, "CHANNELS", 2)

    def inception(images):
        return images.mean(axis=(1, 2))[:, :2]

    def clean_of(hazy):
        return next(
            p["clean"].astype(np.float32) / 255
            for p in Images()
            if np.array_equal(p["hazy"], np.rint(hazy * 255))
        )

    hazy = evaluate(lambda x: x, Images(), method="m", inception=inception, progress=False)
    perfect = evaluate(clean_of, Images(), method="m", inception=inception, progress=False)
    assert hazy.mean["fid"] > 1e-3 and perfect.mean["fid"] == pytest.approx(0, abs=1e-6)
    assert "fid" not in hazy.images[0]
    assert perfect.mean["psnr"] == math.inf


def test_images_pass_by_the_watcher_with_their_index():
    seen = {}
    evaluate(darker, Images(), method="m", watch=lambda i, *images: seen.update({i: images}), progress=False)
    assert sorted(seen) == list(range(7))
    hazy, restored, clean = seen[3]
    np.testing.assert_array_equal(hazy, Images()[3]["hazy"].astype(np.float32) / 255)
    np.testing.assert_array_equal(restored, darker(hazy))
    assert clean.dtype == np.float32


def test_a_method_may_compute_in_half_precision():
    result = evaluate(lambda x: jnp.asarray(x, jnp.bfloat16), Images(), method="m", progress=False)
    exact = evaluate(lambda x: x, Images(), method="m", progress=False)
    assert result.mean["psnr"] == pytest.approx(exact.mean["psnr"], abs=0.05)


def test_an_empty_set_has_no_score():
    none = Images()
    none.total, none.indices = 0, range(0)
    with pytest.raises(ValueError, match="no image"):
        evaluate(darker, none, method="m", progress=False)


def test_images_equal_to_their_ground_truth_are_counted_and_left_out_of_the_mean():
    def perfect_for_two(hazy):
        image = next(p for p in Images() if np.array_equal(p["hazy"], np.rint(hazy * 255)))
        return image["clean"].astype(np.float32) / 255 if image["index"] < 2 else hazy

    result = evaluate(perfect_for_two, Images(), method="m", progress=False)
    assert result.equal == 2 and result.images[0]["psnr"] == math.inf
    assert result.mean["psnr"] == math.fsum(image["psnr"] for image in result.images[2:]) / 5


def test_a_protocol_may_crop_and_average_over_batches(monkeypatch):
    crops = replace(PROTOCOLS["release_crops"], name="crops", crop=12, batch=3)
    monkeypatch.setitem(PROTOCOLS, "crops", crops)
    seen = {}

    def run(seed):
        seen.clear()
        return evaluate(
            darker,
            Images(),
            method="m",
            protocol="crops",
            seed=seed,
            progress=False,
            watch=lambda index, *images: seen.update({index: images}),
        )

    result = run(0)
    errors = []
    for index, (hazy, restored, clean) in sorted(seen.items()):
        assert hazy.shape == clean.shape == (12, 12, 3)
        errors.append(np.square(np.clip(restored, 0, 1) - clean).mean())
        whole = Images()[index]
        found = []
        for part, image in ((hazy, whole["hazy"]), (clean, whole["clean"])):
            image = image.astype(np.float32) / 255
            found.append(
                {
                    (top, left, step)
                    for top in range(image.shape[0] - 11)
                    for left in range(image.shape[1] - 11)
                    for step in (-1, 1)
                    if np.array_equal(image[top : top + 12, left : left + 12][:, ::step], part)
                }
            )
        assert found[0] & found[1]  # the same crop of both
    batches = [-10 * np.log10(np.mean(errors[first : first + 3])) for first in (0, 3, 6)]
    assert result.mean["psnr"] == pytest.approx(np.mean(batches), abs=1e-4)
    assert run(0).images == result.images and run(1).images != result.images
    monkeypatch.setitem(PROTOCOLS, "crops", replace(crops, crop=17))
    with pytest.raises(ValueError, match=r"image_0.*crops 17×17 pixels, found 20×16"):
        run(0)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "worst"),
        (2, "worst best"),
        (3, "worst median best"),
        (4, "worst worst best best"),
        (9, "worst worst median median best best"),
    ],
)
def test_a_sheet_names_few_images_by_their_rank(count, words):
    images = tuple({"psnr": float(i)} for i in range(count))
    chosen = remarkable(Result("m", "paper", images, {}, None), each=2)
    assert [word for word, _ in chosen] == words.split()
    assert [index for _, index in chosen] == sorted({index for _, index in chosen})


def test_several_seeds_give_a_mean_and_its_spread():
    results = [
        evaluate(lambda hazy, by=by: hazy * by, Images(), method="m", progress=False)
        for by in (0.9, 1.0, 0.8)
    ]
    found = over_seeds(results)
    means = [result.mean["psnr"] for result in results]
    assert found.mean["psnr"] == pytest.approx(np.mean(means)) and found.spread["psnr"] == pytest.approx(
        np.std(means, ddof=1)
    )
    third = [result.images[3]["psnr"] for result in results]
    assert found.images[3]["psnr"] == pytest.approx(np.mean(third))
    assert found.images[3]["psnr_std"] == pytest.approx(np.std(third, ddof=1))
    assert over_seeds(results[:1]) is results[0] and not results[0].spread
