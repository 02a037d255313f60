"""Every picture is scored once, alone, and in the data set's order, whatever the batches and processes."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.evaluation import scoring
from difflid_jax.evaluation.scoring import evaluate
from difflid_jax.metrics.fidelity import psnr, ssim


class Pictures:
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
        return {"name": f"picture_{index}", "index": index, "hazy": hazy, "clean": clean}

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
                        evaluate(
                            restore, Pictures(process, processes), method="m", progress=False, **keywords
                        )
                    )
                except (ValueError, RuntimeError) as error:
                    outcomes.append(error)
        return outcomes

    return run


def test_scores_are_those_of_each_picture_alone_in_order():
    result = evaluate(darker, Pictures(), method="m", progress=False)
    assert [image["name"] for image in result.images] == [f"picture_{i}" for i in range(7)]
    for image, picture in zip(result.images, Pictures(), strict=True):
        hazy, clean = (picture[role].astype(np.float32)[None] / 255 for role in ("hazy", "clean"))
        restored = np.clip(darker(hazy), 0, 1)
        assert image["psnr"] == pytest.approx(float(psnr(restored, clean)[0]), abs=1e-5)
        assert image["ssim"] == pytest.approx(float(ssim(restored, clean)[0]), abs=1e-6)
    for metric in ("psnr", "ssim"):
        assert result.mean[metric] == math.fsum(image[metric] for image in result.images) / 7


def test_batches_and_processes_change_nothing(gathered):
    alone = evaluate(darker, Pictures(), method="m", progress=False)
    batched = evaluate(darker, Pictures(), method="m", batch_size=3, progress=False)
    assert [image["name"] for image in batched.images] == [image["name"] for image in alone.images]
    for one, other in zip(alone.images, batched.images, strict=True):
        assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-5)
    for result in gathered(3):
        assert result.images == alone.images and result.mean == alone.mean
    assert all(r.mean == alone.mean for r in gathered(9))  # two processes have no picture


def test_an_error_in_one_process_is_the_error_of_all(gathered):
    def breaks_on_the_last(hazy):
        return np.full_like(hazy, np.nan) if hazy.mean() > 0.8 else hazy

    outcomes = gathered(2, breaks_on_the_last)
    assert all(isinstance(outcome, ValueError) and "picture_" in str(outcome) for outcome in outcomes)


def test_a_picture_scored_twice_or_never_is_no_result(monkeypatch):
    def twice(mine):
        return [mine, mine]

    def never(mine):
        share = json.loads(mine)
        return [json.dumps(share | {"rows": share["rows"][1:]}).encode()]

    for gather in (twice, never):
        monkeypatch.setattr(scoring, "bytes_of_all_processes", gather)
        with pytest.raises(RuntimeError, match="scored twice or never"):
            evaluate(darker, Pictures(), method="m", progress=False)


@pytest.mark.parametrize(
    ("restore", "said"),
    [
        (lambda hazy: np.where(hazy > 0.5, np.inf, hazy), "not finite"),
        (lambda hazy: (hazy * 255).astype(np.uint8), "uint8"),
        (lambda hazy: hazy[:-1], r"\(15, 20, 3\)"),
    ],
)
def test_what_is_no_restored_picture_is_named(restore, said):
    with pytest.raises(ValueError, match=rf"m.*picture_0.*{said}"):
        evaluate(restore, Pictures(), method="m", progress=False)


def test_a_picture_that_takes_too_much_memory_is_named():
    def exhausts(hazy):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    with pytest.raises(ValueError, match=r"picture_0.*20×16.*tiles"):
        evaluate(exhausts, Pictures(), method="m", progress=False)


def test_time_leaves_out_the_first_call_of_each_size():
    seen = set()

    def slow_at_first(hazy):
        time.sleep(0 if hazy.shape in seen else 0.3)
        seen.add(hazy.shape)
        return hazy

    assert evaluate(slow_at_first, Pictures(), method="m", progress=False).seconds < 0.1
    seen.clear()
    one = Pictures()
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
            for p in Pictures()
            if np.array_equal(p["hazy"], np.rint(hazy * 255))
        )

    hazy = evaluate(lambda x: x, Pictures(), method="m", inception=inception, progress=False)
    perfect = evaluate(clean_of, Pictures(), method="m", inception=inception, progress=False)
    assert hazy.mean["fid"] > 1e-3 and perfect.mean["fid"] == pytest.approx(0, abs=1e-6)
    assert "fid" not in hazy.images[0]
    assert perfect.mean["psnr"] == math.inf


def test_pictures_pass_by_the_watcher_with_their_index():
    seen = {}
    evaluate(
        darker, Pictures(), method="m", watch=lambda i, *pictures: seen.update({i: pictures}), progress=False
    )
    assert sorted(seen) == list(range(7))
    hazy, restored, clean = seen[3]
    np.testing.assert_array_equal(hazy, Pictures()[3]["hazy"].astype(np.float32) / 255)
    np.testing.assert_array_equal(restored, darker(hazy))
    assert clean.dtype == np.float32


def test_a_method_may_compute_in_half_precision():
    result = evaluate(lambda x: jnp.asarray(x, jnp.bfloat16), Pictures(), method="m", progress=False)
    exact = evaluate(lambda x: x, Pictures(), method="m", progress=False)
    assert result.mean["psnr"] == pytest.approx(exact.mean["psnr"], abs=0.05)


def test_an_empty_set_has_no_score():
    none = Pictures()
    none.total, none.indices = 0, range(0)
    with pytest.raises(ValueError, match="no picture"):
        evaluate(darker, none, method="m", progress=False)
