"""RESIDE rebuilt: the recipe against real files, its layout and names, seeds, resuming, bad input."""

import json
import tarfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy.optimize import minimize_scalar

from difflid_jax import synthesize as program
from difflid_jax.cli import UsageError
from difflid_jax.data.haze import add_haze
from difflid_jax.data.pairing.pairs import find_pairs
from difflid_jax.data.reside import RECIPES, synthesize
from difflid_jax.data.rgbd import FRAMES
from difflid_jax.data.scenes import MatScenes, open_scenes
from difflid_jax.images.files import read_image, write_png

WHOLE = FRAMES["whole"]
SOTS = replace(RECIPES["sots_indoor"], ids=(1, 3), per_scene=3)
ITS = replace(RECIPES["its"], ids=(1, 3), per_scene=4)


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


def scene(number, height=24, width=32):
    rng = np.random.default_rng(number)
    clean = rng.integers(0, 256, (height, width, 3), np.uint8)
    depth = rng.integers(500, 10_000, (height, width), np.uint16)
    return clean, depth


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    """Three scenes with 16-bit depth, as a folder."""
    root = tmp_path_factory.mktemp("nyu")
    (root / "rgb").mkdir()
    (root / "depth").mkdir()
    for number in range(3):
        clean, depth = scene(number)
        write_png(root / "rgb" / f"{number}.png", clean)
        Image.fromarray(depth).save(root / "depth" / f"{number}.png")
    return root


def make(source, recipe, output, **options):
    return synthesize(open_scenes(source), recipe, output, frame=WHOLE, progress=False, **options)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Against RESIDE's own files.


@pytest.mark.parametrize("name", ["1_1_0.90179", "2_2_0.76381"])
def test_its_files_are_reproduced_from_their_ground_truth_and_nyu_depth(shared, name):
    """A is in the name, β is not: fit, as the one free number. 8-bit depth allows 55.8 to 58.1 dB."""
    number, _, airlight = name.split("_")
    folder = shared / "data" / "its_sample"
    hazy = read_image(folder / "hazy" / f"{name}.png") / np.float32(255)
    clean = read_image(folder / "gt" / f"{number}.png") / np.float32(255)
    scenes = open_scenes(shared / "data" / "nyu_v2_labelled_train.tar")
    stored, depth = scenes.load(int(number))

    def score(frame, beta):
        whole = np.zeros((*depth.shape, 3), np.float32)
        frame.apply(whole)[:] = clean  # a view: the ground truth, back in NYU's frame
        made = frame.apply(add_haze(whole, depth, beta, float(airlight)))
        return psnr(np.rint(made * 255) / 255, hazy)

    def best(frame):
        return minimize_scalar(lambda b: -score(frame, b), bounds=(0.6, 1.8), method="bounded")

    fit = best(FRAMES[scenes.default_frame])
    assert -fit.fun > 55.5 and 0.85 < fit.x < 1.25
    # The image of the tar is the same one, but for its JPEG encoding.
    assert psnr(FRAMES["nyu_mirrored"].apply(stored) / 255, clean) > 38
    if name == "1_1_0.90179":
        assert -best(FRAMES["nyu"]).fun < 35  # not mirrored: no agreement


def test_sots_files_follow_the_recipe(shared):
    """I = J·t + 1 − t with t = exp(−β·d), β = 0.5 + 0.1·k: of every real scene the file of level 2 gives the
    depth, and with it the file of level 8 (β = 1.3, from 0.7): 52.9 to 56.3 dB. A β off by 0.1 costs 14 dB.
    """
    haze = {name: (airlight, beta) for name, airlight, beta in RECIPES["sots_indoor"].haze(1400, 0)}
    assert len(haze) == 10 and haze["1400_2"] == (1.0, 0.7) and haze["1400_8"] == (1.0, 1.3)
    folder = shared / "data" / "sots_indoor_dev"
    for number in range(1400, 1420, 4):
        clean = read_image(folder / "gt" / f"{number}.png") / 255
        light, heavy = (read_image(folder / "hazy" / f"{number}_{k}.png") / 255 for k in (2, 8))
        veil = 1 - clean
        t = ((1 - light) * veil).sum(-1) / np.maximum((veil**2).sum(-1), 1e-6)
        depth = -np.log(np.clip(t, 0.2, 1)) / haze["1400_2"][1]

        def remade(beta, clean=clean, depth=depth):
            t = np.exp(-beta * depth)[..., None]
            return clean * t + (1 - t)

        assert psnr(remade(haze["1400_8"][1]), heavy) > 52.5
        assert psnr(remade(haze["1400_8"][1] + 0.1), heavy) < 42
        dark = (veil**2).sum(-1) > 0.05
        assert 0.9 < np.percentile(depth[dark], 99.9) <= 1.01  # depth in units of the farthest point


# Layout, names, values.


def test_its_layout_names_and_ranges(nyu, tmp_path):
    assert make(nyu, ITS, tmp_path / "ITS") == 15
    pairs, report = find_pairs(tmp_path / "ITS", "its", progress=False)
    assert report.clean_bill and report.pair_count == 12 and (tmp_path / "ITS" / "clear" / "3.png").is_file()
    assert not any("unlike" in finding.message for finding in report.of("warning"))
    rows = (tmp_path / "ITS" / "haze.csv").read_text().splitlines()
    assert rows[0] == "name,airlight,beta" and len(rows) == 13
    drawn = {name: (float(a), float(b)) for name, a, b in (row.split(",") for row in rows[1:])}
    for pair in pairs:
        airlight, beta = drawn[pair.name]
        number, level, named = pair.name.split("_")
        assert (
            float(named) == airlight and 0.7 <= airlight <= 1 and 0.6 <= beta <= 1.8 and 1 <= int(level) <= 4
        )
        clean, depth = scene(int(number) - 1)
        t = np.exp(-beta * depth / depth.max())[..., None]
        expected = clean / 255 * t + airlight * (1 - t)
        np.testing.assert_allclose(read_image(pair.hazy) / 255, expected, atol=0.51 / 255 + 1e-4)
        np.testing.assert_array_equal(read_image(pair.clean), clean)
    assert (
        len({airlight for airlight, _ in drawn.values()}) == len({beta for _, beta in drawn.values()}) == 12
    )


def test_full_recipes_have_resides_numbers():
    its = [haze for number in range(1, 1400) for haze in RECIPES["its"].haze(number, 0)]
    assert len({name for name, _, _ in its}) == 13_990
    airlight, beta = np.array([(a, b) for _, a, b in its]).T
    for values, low, high in ((airlight, 0.7, 1.0), (beta, 0.6, 1.8)):
        assert low <= values.min() < low + 0.001 and high - 0.001 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.01
    assert abs(np.corrcoef(airlight, beta)[0, 1]) < 0.03
    assert RECIPES["sots_indoor"].ids == (1400, 1449)


def test_depth_is_that_of_the_whole_image_and_the_frame_is_cut_afterwards(tmp_path):
    clean, depth = scene(5, 500, 660)
    depth[:10] = 40_000  # the farthest point lies in the border
    for folder, array in (("rgb", clean), ("depth", depth)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "0.png")
    recipe = replace(SOTS, ids=(1, 1), per_scene=1)
    synthesize(open_scenes(tmp_path), recipe, tmp_path / "out", progress=False)
    mirrored, depth = clean[:, ::-1][10:470, 10:630], depth[:, ::-1][10:470, 10:630]
    t = np.exp(-0.6 * depth / 40_000)[..., None]
    made = read_image(tmp_path / "out" / "hazy" / "1_1.png") / 255
    np.testing.assert_allclose(made, mirrored / 255 * t + 1 - t, atol=0.51 / 255 + 1e-4)
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "gt" / "1.png"), mirrored)


# Seeds, parts, resuming.


def test_the_seed_decides_and_a_part_is_the_same_part(nyu, tmp_path):
    make(nyu, ITS, tmp_path / "a", workers=1)
    make(nyu, ITS, tmp_path / "b", workers=4)
    make(nyu, replace(ITS, ids=(2, 2)), tmp_path / "part")
    make(nyu, ITS, tmp_path / "other", seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    part = {k: v for k, v in contents(tmp_path / "part").items() if k.endswith(".png")}
    assert len(part) == 5 and part.items() <= contents(tmp_path / "a").items()
    assert not set(contents(tmp_path / "other")) & {k for k in contents(tmp_path / "a") if "hazy/" in k}


def test_an_interrupted_run_is_finished_and_damage_repaired(nyu, tmp_path):
    make(nyu, SOTS, tmp_path / "set")
    whole = contents(tmp_path / "set")
    (tmp_path / "set" / "hazy" / "2_1.png").unlink()
    truncated = tmp_path / "set" / "hazy" / "3_2.png"
    truncated.write_bytes(truncated.read_bytes()[:100])
    (tmp_path / "set" / "gt" / "1.png").write_bytes(b"")
    assert make(nyu, SOTS, tmp_path / "set") > 0
    assert contents(tmp_path / "set") == whole
    assert make(nyu, SOTS, tmp_path / "set") == 0


def test_other_settings_or_foreign_folders_are_refused_and_left_alone(nyu, tmp_path):
    make(nyu, ITS, tmp_path / "set")
    before = contents(tmp_path / "set")
    with pytest.raises(ValueError, match=r"was begun with different settings \(seed"):
        make(nyu, ITS, tmp_path / "set", seed=1)
    with pytest.raises(ValueError, match=r"was begun with different settings \(recipe"):
        make(nyu, replace(ITS, beta=(0.6, 1.0)), tmp_path / "set")
    with pytest.raises(ValueError, match=r"was begun with different settings \(recipe"):
        make(nyu, replace(ITS, linear=True), tmp_path / "set")
    write_mat(tmp_path / "other.mat")
    with pytest.raises(ValueError, match=r"was begun with different settings \(images"):
        make(tmp_path / "other.mat", ITS, tmp_path / "set")
    assert contents(tmp_path / "set") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="is not empty and was not made by this program"):
        make(nyu, ITS, tmp_path / "mine")
    assert list(contents(tmp_path / "mine")) == ["diary.txt"]


# Sources.


def test_folders_tars_and_separate_places_give_the_same_set(nyu, tmp_path):
    with tarfile.open(tmp_path / "nyu.tar", "w") as tar:
        tar.add(nyu, ".")
    make(nyu, SOTS, tmp_path / "folder")
    make(tmp_path / "nyu.tar", SOTS, tmp_path / "tar")
    apart = open_scenes(nyu / "rgb", tmp_path / "nyu.tar")
    synthesize(apart, SOTS, tmp_path / "apart", frame=WHOLE, progress=False)
    assert contents(tmp_path / "folder") == contents(tmp_path / "tar") == contents(tmp_path / "apart")


def write_mat(path, count=3):
    scenes = [scene(number) for number in range(count)]
    with h5py.File(path, "w") as file:
        file["images"] = np.stack([clean.transpose(2, 1, 0) for clean, _ in scenes])
        file["depths"] = np.stack([(depth / 1000).astype(np.float32).T for _, depth in scenes])


def test_nyus_own_mat_gives_the_same_set(nyu, tmp_path):
    write_mat(tmp_path / "nyu_depth_v2_labeled.mat")
    with pytest.raises(ValueError, match="contains its own depths; omit --depth=plausible"):
        open_scenes(tmp_path / "nyu_depth_v2_labeled.mat", "plausible")
    scenes = open_scenes(tmp_path / "nyu_depth_v2_labeled.mat")
    assert isinstance(scenes, MatScenes) and scenes.ids == [1, 2, 3]
    assert FRAMES[scenes.default_frame].mirrored is False
    synthesize(scenes, SOTS, tmp_path / "mat", frame=WHOLE, progress=False)
    make(nyu, SOTS, tmp_path / "folder")
    for name in ("hazy/1_1.png", "hazy/3_3.png", "gt/2.png"):
        difference = read_image(tmp_path / "mat" / name).astype(int) - read_image(tmp_path / "folder" / name)
        assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.01  # 16-bit depth is rounded


def test_photographs_without_depth_get_a_plausible_one(nyu, tmp_path):
    scenes = open_scenes(nyu / "rgb", "plausible")
    assert scenes.default_frame == "whole"
    synthesize(scenes, SOTS, tmp_path / "made", frame=WHOLE, progress=False)
    clean, depth = scenes.load(1)
    assert depth.max() == 1 and depth.min() < 0.5
    expected = np.rint(255 * add_haze(clean.astype(np.float32) / 255, depth, 0.6, 1.0))
    assert np.abs(read_image(tmp_path / "made" / "hazy" / "1_1.png") - expected).max() <= 1


# Bad input.


def test_bad_sources_are_named(nyu, tmp_path):
    with pytest.raises(FileNotFoundError):
        open_scenes(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        open_scenes(tmp_path / "absent.mat")
    (tmp_path / "text.mat").write_text("MATLAB 5.0 MAT-file")
    with pytest.raises(
        ValueError, match=r"text.mat: expected HDF5 \(MATLAB 7.3\) with “images” and “depths”"
    ):
        open_scenes(tmp_path / "text.mat")
    with h5py.File(tmp_path / "shape.mat", "w") as file:
        file["images"], file["depths"] = np.zeros((2, 3, 8, 6), np.uint8), np.zeros((2, 6, 8))
    with pytest.raises(ValueError, match=r"expected images \(N,3,W,H\) and depths \(N,W,H\)"):
        open_scenes(tmp_path / "shape.mat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images here, nor in rgb/ below"):
        open_scenes(tmp_path / "empty")
    (tmp_path / "depth").mkdir()
    Image.fromarray(scene(0)[1]).save(tmp_path / "depth" / "0.png")
    with pytest.raises(ValueError, match="no depth/ here; give --depth=FILES, or --depth=plausible"):
        open_scenes(tmp_path / "depth")
    with pytest.raises(ValueError, match=r"2 images or depths without a partner .* first .*1.png"):
        open_scenes(nyu, tmp_path / "depth")
    Image.fromarray(scene(0)[1]).save(tmp_path / "depth" / "sofa.png")
    with pytest.raises(ValueError, match=r"sofa.png: RESIDE numbers its scenes"):
        open_scenes(nyu, tmp_path / "depth")


def test_bad_scenes_are_named(nyu, tmp_path):
    with pytest.raises(ValueError, match=r"50 of the 50 ids 1400-1449 do not exist, first 1400 \(found: 1-3"):
        make(nyu, RECIPES["sots_indoor"], tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="smaller than the frame of rows 10:470"):
        synthesize(open_scenes(nyu), SOTS, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
    (tmp_path / "depth").mkdir()
    for number in range(3):
        Image.fromarray(scene(number, 24, 30)[1]).save(tmp_path / "depth" / f"{number}.png")
    with pytest.raises(ValueError, match=r"scene 1: the image is \(24, 32\) .* its depth is \(24, 30\)"):
        synthesize(
            open_scenes(nyu, tmp_path / "depth"), SOTS, tmp_path / "c", frame=WHOLE, workers=1, progress=False
        )


def test_the_program_writes_resumes_and_refuses(nyu, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        values = flags.FlagValues()
        program.define_flags(values)
        values(["synthesize", *arguments])
        program.main([""], values)
        return capsys.readouterr().out

    arguments = (f"--rgb={nyu}", "--ids=1-2", "--per_scene=2", "--frame=whole", "--output=set")
    assert run(*arguments, "--seed=3", "--airlight=0.9,0.9") == "set: 6 images written\n"
    assert sorted(path.name for path in (tmp_path / "set" / "hazy").iterdir())[0] == "1_1_0.9.png"
    assert json.loads((tmp_path / "set" / "synthesized.json").read_text())["seed"] == 3
    assert run(*arguments, "--seed=3", "--airlight=0.9,0.9") == "set: already complete\n"
    for refused, words in (
        ([*arguments], r"was begun with different settings \(recipe and seed;"),
        ([*arguments, "--beta=1"], "--beta: expected two numbers"),
        ([*arguments, "--airlight=0.5,1.5"], "--airlight: expected 0 ≤ low ≤ high ≤ 1"),
        ([*arguments, "--ids=1+3"], "ids must look like 1300-1399"),
        ([*arguments, "--recipe=sots_indoor", "--beta=1,2"], "--beta: the haze of sots_indoor is fixed"),
        (["--output=x"], "give --rgb=FILES and --output=FOLDER"),
    ):
        with pytest.raises((UsageError, ValueError), match=words):
            run(*refused)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
