"""Every role of a run is reported before training: how it was paired, and which images roles share."""

import numpy as np
from PIL import Image

from difflid_jax.data import roles
from difflid_jax.data.roles import report_roles
from difflid_jax.data.sources import hold_out, open_data


def _smooth(seed):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((60, 50), Image.Resampling.BICUBIC)


def _pairs(folder, seeds, border=0, suffix=".png"):
    """Hazy and clean pairs, the clean ones with a border."""
    for name, paler in (("hazy", True), ("gt", False)):
        (folder / name).mkdir(parents=True)
        for seed in seeds:
            image = _smooth(seed)
            if paler:
                image = image.crop((border, border, 60 - border, 50 - border)).point(lambda v: v // 2 + 127)
            image.save(folder / name / f"{seed}{suffix}")
    return open_data("folders", folder, progress=False)


def test_every_role_is_reported_with_the_images_it_shares(tmp_path):
    train = _pairs(tmp_path / "train", (1, 2, 3))
    validation = _pairs(tmp_path / "validation", (4,), border=5)
    test = _pairs(tmp_path / "test", (5, 2))
    text = report_roles({"train": train, "validation": validation, "test": test}, progress=False)
    for role in ("train", "validation", "test"):
        assert f"{role}: two folders: " in text
    assert "the clean image of 1 pair is centre-cropped" in text  # of the validation set
    assert "warning: 1 of 2 test images are also train images: 2 is 2" in text
    assert text.count("warning: 1") == 1
    parts = dict(zip(("train", "validation"), hold_out(train, 1, seed=0), strict=True))
    text = report_roles(parts, progress=False)
    assert text.startswith("train and validation: two folders: 3 pairs") and "warning" not in text


def test_photographs_encoded_anew_and_single_images_are_found(tmp_path, monkeypatch):
    train = _pairs(tmp_path / "train", (1, 2))
    test = _pairs(tmp_path / "test", (2, 9), suffix=".jpg")
    text = report_roles({"train": train, "test": test}, tmp_path, progress=False)
    assert "warning: 1 test images show the same photographs as train images: 2 shows 2" in text
    with monkeypatch.context() as patched:
        patched.setattr(roles, "find_shared", None)  # the same images are not compared again
        assert report_roles({"train": train, "test": test}, tmp_path, progress=False) == text
    alone = open_data("images", tmp_path / "train" / "gt", progress=False)
    other = open_data("images", tmp_path / "test" / "hazy", progress=False)
    assert "1.png is gt/1.png" in report_roles({"train": alone, "validation": alone}, progress=False)
    assert report_roles({"train": other}, progress=False) == ""
