"""Test images in a training set are found through encoding, mirroring, a border and renaming."""

import shutil
import tarfile

import numpy as np
from PIL import Image

from difflid_jax.data.pairing.leakage import find_leaks
from difflid_jax.data.pairing.pairs import find_pairs


def found(root, dataset):
    return find_pairs(root, dataset, progress=False)


def smooth(seed, size=(300, 400)):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def test_leaks_are_found_through_jpeg_mirroring_border_and_renaming(tmp_path):
    for part in ("train", "test"):
        for role in ("hazy", "clean"):
            (tmp_path / part / role).mkdir(parents=True)
    train, test = tmp_path / "train", tmp_path / "test"

    def pair(part, name, image):
        image.save(part / "clean" / name)
        image.point(lambda v: v // 2 + 127).save(part / "hazy" / name)

    for seed in range(6):
        pair(train, f"{seed}.png", smooth(seed))
    pair(test, "own.png", smooth(100))
    pair(test, "jpeg.jpg", smooth(0))
    pair(test, "mirrored.png", smooth(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    pair(test, "cropped.png", smooth(2).crop((10, 10, 390, 290)))
    shutil.copy(train / "clean" / "3.png", test / "clean" / "renamed.png")
    smooth(50).save(test / "hazy" / "renamed.png")
    train_pairs, test_pairs = found(train, "folders")[0], found(test, "folders")[0]
    leaks = find_leaks(train_pairs, test_pairs, progress=False)
    text = "\n".join(finding.line(None) for finding in leaks)
    assert {finding.severity for finding in leaks} == {"warning"}
    assert f"{test}/clean/renamed.png = {train}/clean/3.png" in text
    for name, seed in (("jpeg.jpg", 0), ("mirrored.png", 1), ("cropped.png", 2)):
        assert f"{test}/clean/{name} shows {train}/clean/{seed}.png" in text
    assert "own.png" not in text
    assert find_leaks(train_pairs, [p for p in test_pairs if p.name == "own"], progress=False) == []
    assert "used by both" in find_leaks(train_pairs, train_pairs[:1], thorough=False)[0].items[0]


def test_real_training_and_test_scenes_are_told_apart(shared, tmp_path):
    its, _ = found(shared / "data" / "its_sample", "its")
    test, _ = found(shared / "data" / "sots_indoor_dev", "sots_indoor")
    assert find_leaks(its, test, progress=False) == []
    # The same two photographs as NYU has them: as JPEG, mirrored, with a border of 10 pixels.
    for role in ("rgb", "clean", "hazy"):
        (tmp_path / role).mkdir()
    with tarfile.open(shared / "data" / "nyu_v2_labelled_train.tar") as tar:
        for number in (0, 1):
            data = tar.extractfile(f"rgb/{number}.jpg").read()
            (tmp_path / "clean" / f"{number}.jpg").write_bytes(data)
            (tmp_path / "hazy" / f"{number}.jpg").write_bytes(data)
    nyu, _ = found(tmp_path, "folders")
    assert len(find_leaks(nyu, its, progress=False)[0].items) == 2
    assert find_leaks(nyu, test, progress=False) == []
    assert len(find_leaks(its + test[:4], test, progress=False)[0].items) == 6
