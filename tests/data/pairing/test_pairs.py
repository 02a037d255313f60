"""Pairs are found by key in every common layout, and every fault of a set is named."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.data.pairing import matching
from difflid_jax.data.pairing.pairs import Pair, check_or_raise, find_pairs, load_pair
from difflid_jax.images.files import read_image, write_png


def photo(seed, height=20, width=24):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make(folder: Path, *names: str, height=20, width=24):
    """Write an image of its own under every name; the extension chooses the format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = sum(map(ord, f"{folder}{name}")) * 7919 + len(name)
        Image.fromarray(photo(seed, height, width)).save(folder / name)


def partners(pairs: list[Pair]) -> dict[str, str]:
    return {pair.hazy.name: pair.clean.name for pair in pairs}


def found(root, dataset, split=None, **options):
    return find_pairs(root, dataset, split, progress=False, **options)


def sots(folder: Path, *, clean_size=(20, 24), scenes=(1400, 1401), levels=(1, 2, 10)):
    make(folder / "hazy", *(f"{scene}_{level}.png" for scene in scenes for level in levels))
    make(folder / "gt", *(f"{scene}.png" for scene in scenes), height=clean_size[0], width=clean_size[1])
    return folder


# Layouts.


def test_reside_pairs_by_scene_in_natural_order(tmp_path):
    pairs, report = found(sots(tmp_path), "sots_indoor")
    assert [pair.name for pair in pairs] == ["1400_1", "1400_2", "1400_10", "1401_1", "1401_2", "1401_10"]
    assert {p.hazy.stem.split("_")[0] == p.clean.stem for p in pairs} == {True}
    assert report.clean_bill and report.pair_count == 6
    assert report.summary == "RESIDE SOTS indoor: 6 of 500 pairs"
    check_or_raise(report)


@pytest.mark.parametrize("names", [("hazy", "GT"), ("haze", "clear"), ("IN", "target"), ("input", "clean")])
def test_folder_names_that_copies_carry(tmp_path, names):
    make(tmp_path / names[0], "1_1_0.9.png", "2_1_1.png")
    make(tmp_path / names[1], "1.png", "2.png")
    pairs, _ = found(tmp_path, "its", "train")
    assert partners(pairs) == {"1_1_0.9.png": "1.png", "2_1_1.png": "2.png"}


def test_clean_images_named_like_the_hazy_ones(tmp_path):
    for folder in ("hazy", "gt"):
        make(tmp_path / "nyuhaze500" / folder, "1400_1.png", "1400_2.png", "1401_1.png", "1401_2.png")
    pairs, report = found(tmp_path, "sots_indoor", "test")
    assert all(hazy == clean for hazy, clean in partners(pairs).items()) and len(pairs) == 4
    assert report.clean_bill


def test_indoor_and_outdoor_are_told_apart_below_one_root(tmp_path):
    sots(tmp_path / "SOTS" / "indoor")
    make(tmp_path / "SOTS/outdoor/hazy", "0001_0.8_0.2.jpg", "0002_1_0.16.jpg", "0002_0.85_0.2.jpg")
    make(tmp_path / "SOTS/outdoor/gt", "0001.png", "0002.png")
    indoor, _ = found(tmp_path, "sots_indoor")
    outdoor, report = found(tmp_path, "sots_outdoor")
    assert len(indoor) == 6
    assert partners(outdoor) == {
        "0001_0.8_0.2.jpg": "0001.png",
        "0002_0.85_0.2.jpg": "0002.png",
        "0002_1_0.16.jpg": "0002.png",
    }
    assert report.clean_bill
    with pytest.raises(ValueError, match="several folders hold pairs"):
        found(tmp_path, "folders")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dataset", ["dense_haze", "nh_haze"])
def test_dense_haze_and_nh_haze_split_by_number(tmp_path, flat, dataset):
    hazy, clean = (tmp_path, tmp_path) if flat else (tmp_path / "hazy", tmp_path / "GT")
    numbers = [1, 2, 50, 51, 52, 53, 54, 55]
    make(hazy, *(f"{n:02}_hazy.png" for n in numbers))
    make(clean, *(f"{n:02}_GT.png" for n in numbers))
    test, report = found(tmp_path, dataset, "test")
    assert partners(test) == {f"{n}_hazy.png": f"{n}_GT.png" for n in range(51, 56)}
    assert report.clean_bill and report.summary.endswith(": 5 pairs")
    train, report = found(tmp_path, dataset, "train")
    assert [pair.name for pair in train] == ["01_hazy", "02_hazy", "50_hazy"]
    with pytest.raises(
        ValueError, match="47 of the 50 numbers of this split are missing: 3; 4; 5; and 44 more"
    ):
        check_or_raise(report)
    assert len(found(tmp_path, dataset)[0]) == 8


def test_lol_v1_has_its_own_splits(tmp_path):
    for folder, names in (("our485", ("2.png", "5.png")), ("eval15", ("1.png",))):
        make(tmp_path / folder / "low", *names)
        make(tmp_path / folder / "high", *names)
    assert partners(found(tmp_path, "lol_v1", "train")[0]) == {"2.png": "2.png", "5.png": "5.png"}
    assert partners(found(tmp_path, "lol_v1", "test")[0]) == {"1.png": "1.png"}
    shutil.rmtree(tmp_path / "eval15")
    with pytest.raises(ValueError, match=r"no LOL-v1 \(test\) found \(only our485/low\)"):
        found(tmp_path, "lol_v1", "test")


@pytest.mark.parametrize("prefixes", [("low", "normal"), ("", "")])
def test_lol_v2_real_in_both_namings_and_without_the_synthetic_part(tmp_path, prefixes):
    low, normal = prefixes
    for part, numbers in (("Train", ("00001", "00002")), ("Test", ("00690",))):
        make(tmp_path / "Real_captured" / part / "Low", *(f"{low}{n}.png" for n in numbers))
        make(tmp_path / "Real_captured" / part / "Normal", *(f"{normal}{n}.png" for n in numbers))
        make(tmp_path / "Synthetic" / part / "Low", "r000.png")
        make(tmp_path / "Synthetic" / part / "Normal", "r000.png")
    test, _ = found(tmp_path, "lol_v2_real", "test")
    train, _ = found(tmp_path, "lol_v2_real", "train")
    assert partners(test) == {f"{low}00690.png": f"{normal}00690.png"}
    assert len(train) == 2 and all("Real_captured/Train" in str(pair.hazy) for pair in train)


def test_a_mixed_or_swapped_low_light_set_is_named(tmp_path):
    for name, gain in [(f"{n}.png", 0.2) for n in (1, 2, 3)]:
        for folder, image in (("low", photo(1) * gain), ("high", photo(1))):
            (tmp_path / "v1" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "v1" / folder / name)
    check_or_raise(found(tmp_path / "v1", "lol_v1")[1])
    _, report = found(f"{tmp_path}/v1/high|{tmp_path}/v1/low", "lol_v1")
    with pytest.raises(ValueError, match=r"brighter than the clean .*mean 12\d against 2\d.* swapped"):
        check_or_raise(report, allow_missing=True)
    for folder, name in (("low", "low00001.png"), ("high", "normal00001.png")):
        make(tmp_path / "v1" / folder, name)
    warnings = [finding.line() for finding in found(tmp_path / "v1", "lol_v1")[1].of("warning")]
    assert "1 name unlike those of LOL-v1: low00001.png" in warnings
    make(tmp_path / "v2" / "Low", "low00001.png")
    make(tmp_path / "v2" / "Normal", "normal00001.png")
    warnings = [finding.line() for finding in found(tmp_path / "v2", "lol_v1")[1].of("warning")]
    assert "by their names these are images of LOL-v2 Real, not of LOL-v1" in warnings


def test_names_in_two_unicode_forms_are_partners(tmp_path):
    composed, decomposed = "Übung.png", "U\u0308bung.png"
    make(tmp_path / "hazy", composed)
    make(tmp_path / "gt", decomposed)
    assert partners(found(tmp_path, "folders")[0]) == {composed: decomposed}
    (tmp_path / "pairs.txt").write_text(f"hazy/{decomposed}|gt/{composed}\n", encoding="utf-8")
    assert partners(found(tmp_path / "pairs.txt", "folders")[0]) == {composed: decomposed}


def test_home_is_expanded_and_backslashes_get_a_hint(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sots(tmp_path / "set")
    assert len(found("~/set", "sots_indoor")[0]) == len(found("~/set/hazy | ~/set/gt", "sots_indoor")[0]) == 6
    with pytest.raises(FileNotFoundError, match="a backslash is part of a name here"):
        found(f"{tmp_path}\\set", "sots_indoor")
    (tmp_path / "pairs.txt").write_text("set\\hazy\\1400_1.png|set/gt/1400.png\n")
    with pytest.raises(ValueError, match=r"separate folders by / instead of"):
        check_or_raise(found(tmp_path / "pairs.txt", "folders")[1])


def test_two_folders_anywhere(tmp_path):
    make(tmp_path / "mist", "b.png", "a.jpg")
    make(tmp_path / "sharp", "a.png", "b.jpg")
    pairs, report = found(f"{tmp_path / 'mist'}|{tmp_path / 'sharp'}", "folders")
    assert partners(pairs) == {"a.jpg": "a.png", "b.png": "b.jpg"}
    assert report.folders == (tmp_path / "mist", tmp_path / "sharp")


def test_list_file_is_relative_to_itself_and_names_missing_files(tmp_path):
    make(tmp_path / "x", "1.png", "2.png")
    listing = tmp_path / "pairs.txt"
    listing.write_text("# hazy|clean\nx/1.png|x/2.png\n\nx/2.png | x/9.png\n")
    pairs, report = found(listing, "folders")
    assert partners(pairs) == {"1.png": "2.png"}
    with pytest.raises(ValueError, match=r"line 4: .*x/9.png not found"):
        check_or_raise(report)
    listing.write_text("x/1.png x/2.png\n")
    with pytest.raises(ValueError, match=r"line 1 is 'x/1.png x/2.png'; expected"):
        found(listing, "folders")
    listing.write_text("# nothing\n")
    with pytest.raises(ValueError, match="list is empty"):
        found(listing, "folders")


def test_names_in_a_list_tell_its_images_apart(tmp_path):
    make(tmp_path / "a", "1.png", "2.png")
    make(tmp_path / "b", "1.png")
    (tmp_path / "pairs.txt").write_text("a/1.png|a/2.png\nb/1.png|a/2.png\n")
    pairs, _ = found(tmp_path / "pairs.txt", "folders")
    assert [pair.name for pair in pairs] == ["a/1.png", "b/1.png"]


def test_a_list_may_lie_elsewhere_and_must_not_repeat_itself(tmp_path):
    make(tmp_path / "a", "1.png", "2.png")
    make(tmp_path / "b", "1.png")
    listing = tmp_path / "lists" / "pairs.txt"
    listing.parent.mkdir()
    lines = [f"{tmp_path}/{hazy}|{tmp_path}/a/2.png" for hazy in ("a/1.png", "b/1.png", "a/1.png")]
    listing.write_text("\n".join(lines))
    pairs, report = found(listing, "folders")
    assert [pair.name for pair in pairs] == [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"]
    with pytest.raises(ValueError, match="1 line of the list name a hazy image again: line 3"):
        check_or_raise(report, allow_missing=True)


def test_a_link_to_the_ground_truth_is_the_same_folder(tmp_path):
    sots(tmp_path)
    (tmp_path / "GT").symlink_to("gt", target_is_directory=True)
    assert len(found(tmp_path, "sots_indoor")[0]) == 6


def test_unnumbered_images_of_a_numbered_set_are_named(tmp_path):
    make(tmp_path, *(f"{n}_{role}.png" for n in range(51, 56) for role in ("hazy", "GT")), "extra_hazy.png")
    pairs, report = found(tmp_path, "nh_haze", "test")
    assert len(pairs) == 5 and report.omitted == (str(tmp_path / "extra_hazy.png"),)


def test_order_and_position_of_files_never_matter(tmp_path):
    names = [f"{i}.png" for i in random.Random(0).sample(range(1000), 60)]
    make(tmp_path / "hazy", *names[1:])  # by sorted order everything after the gap would be shifted
    make(tmp_path / "gt", *names)
    pairs, report = found(tmp_path, "folders")
    assert len(pairs) == 59 and all(hazy == clean for hazy, clean in partners(pairs).items())
    assert report.omitted == (f"{tmp_path / 'gt' / names[0]} has no hazy partner",)


# The ground truth's border.


def test_uncropped_ground_truth_gives_the_pixels_of_the_cropped_copy(tmp_path, shared):
    cropped = shared / "data" / "sots_indoor_dev"
    official = tmp_path / "SOTS" / "indoor"
    (official / "hazy").mkdir(parents=True)
    (official / "gt").mkdir()
    for path in sorted((cropped / "hazy").glob("140[01]_*.png")):
        shutil.copy(path, official / "hazy")
    for path in sorted((cropped / "gt").glob("140[01].png")):
        image = read_image(path)
        full = photo(int(path.stem), 480, 640)
        full[10:470, 10:630] = image
        write_png(official / "gt" / path.name, full)
    ours, report = found(official.parent, "sots_indoor")
    reference = [p for p in found(cropped, "sots_indoor")[0] if p.name < "1402"]
    assert [pair.name for pair in ours] == [pair.name for pair in reference]
    assert {pair.crop for pair in ours} == {(10, 10, 460, 620)}
    for pair, same in zip(ours, reference, strict=True):
        for image, expected in zip(load_pair(pair), load_pair(same), strict=True):
            np.testing.assert_array_equal(image, expected)
    notes = [finding for finding in report.of("note") if "centre-cropped" in finding.message]
    assert notes[0].items == ("4 pairs from 640×480 to 620×460",)


@pytest.mark.parametrize("clean_size", [(21, 24), (20, 25), (18, 22), (40, 48), (18, 26), (50, 60), (80, 40)])
def test_sizes_that_are_no_border_are_errors_that_name_both_files(tmp_path, clean_size):
    pairs, report = found(sots(tmp_path, clean_size=clean_size, scenes=(1400,), levels=(1,)), "sots_indoor")
    assert not pairs
    with pytest.raises(ValueError, match="not one usable pair") as refusal:
        check_or_raise(report, allow_missing=True)
    for words in ("1400_1.png is 24×20", f"1400.png is {clean_size[1]}×{clean_size[0]}"):
        assert words in str(refusal.value)


def test_load_pair_refuses_unequal_sizes(tmp_path):
    make(tmp_path, "a.png")
    make(tmp_path, "b.png", height=30)
    with pytest.raises(ValueError, match=r"a.png is 24×20 but .*b.png is 24×30"):
        load_pair(Pair("a", tmp_path / "a.png", tmp_path / "b.png"))


# What is wrong with a set.


def test_one_unpaired_image_of_many_is_named_and_refused_unless_allowed(tmp_path):
    sots(tmp_path, scenes=range(1400, 1410), levels=range(1, 11))
    (tmp_path / "gt" / "1403.png").rename(tmp_path / "gt" / "1503.png")
    pairs, report = found(tmp_path, "sots_indoor")
    assert len(pairs) == 90
    assert f"{tmp_path / 'hazy' / '1403_1.png'} has no clean “1403”" in report.omitted
    assert f"{tmp_path / 'gt' / '1503.png'} has no hazy partner" in report.omitted
    with pytest.raises(ValueError, match=r"11 images without a partner.*--allow-missing") as refusal:
        check_or_raise(report)
    assert "\n" not in str(refusal.value)
    check_or_raise(report, allow_missing=True)
    assert report.summary == "RESIDE SOTS indoor: 90 of 500 pairs (11 left out)"
    shutil.copy(tmp_path / "gt" / "1503.png", tmp_path / "gt" / "1403.png")
    (tmp_path / "gt" / "1503.png").unlink()
    (tmp_path / "gt" / "1404.png").write_bytes(b"")
    pairs, report = found(tmp_path, "sots_indoor")
    assert report.summary == "RESIDE SOTS indoor: 90 of 500 pairs (10 left out)"
    assert len(report.omitted) == 1 and report.omitted[0].endswith("(10 pairs)")


def test_an_absent_haze_level_makes_the_set_partial(tmp_path):
    sots(tmp_path, levels=(1, 2, 3))
    (tmp_path / "hazy" / "1401_2.png").unlink()
    with pytest.raises(ValueError, match="1 haze level missing that other scenes have: 1401_2"):
        check_or_raise(found(tmp_path, "sots_indoor")[1])


def test_bad_images_are_left_out_by_name_and_the_rest_is_paired(tmp_path):
    names = ("ok", "truncated", "middle", "text", "empty", "sixteen", "palette", "cmyk", "alpha", "tiny")
    make(tmp_path / "hazy", *(f"{name}.png" for name in names))
    make(tmp_path / "gt", *(f"{name}.png" for name in names))
    hazy = tmp_path / "hazy"
    good = Image.fromarray(photo(1))
    data = (hazy / "truncated.png").read_bytes()
    (hazy / "truncated.png").write_bytes(data[:200])
    (hazy / "middle.png").write_bytes(data[:300] + bytes(100) + data[400:])
    (hazy / "text.png").write_text("hello")
    (hazy / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((20, 24), np.uint16)).save(hazy / "sixteen.png")
    good.quantize(8).save(hazy / "palette.png")
    good.convert("CMYK").save(hazy / "cmyk.jpg")
    (hazy / "cmyk.png").unlink()
    good.putalpha(77)
    good.save(hazy / "alpha.png")
    make(hazy, "tiny.png", height=9, width=9)
    make(tmp_path / "gt", "tiny.png", height=9, width=9)
    pairs, report = found(tmp_path, "folders", thorough=True)
    assert [pair.name for pair in pairs] == ["ok"]
    assert len(report.omitted) == len(names) - 1
    text = report.text(shown=None)
    for name, reason in (
        ("truncated.png", "truncated"),
        ("middle.png", "damaged"),
        ("text.png", "not an image"),
        ("empty.png", "empty"),
        ("sixteen.png", "16-bit"),
        ("palette.png", "palette"),
        ("cmyk.jpg", "CMYK"),
        ("alpha.png", "transparent"),
        ("tiny.png", "is 9×9"),
    ):
        assert any(name in line and reason in line for line in text.splitlines()), (name, text)
    quick, _ = found(tmp_path, "folders")
    assert [pair.name for pair in quick] == ["middle", "ok"]  # only decoding finds damage in the middle


def test_grey_and_opaque_alpha_are_used_and_reported(tmp_path):
    make(tmp_path / "hazy", "a.png", "b.png")
    make(tmp_path / "gt", "a.png", "b.png")
    image = Image.fromarray(photo(3))
    image.convert("L").save(tmp_path / "hazy" / "a.png")
    image.putalpha(255)
    image.save(tmp_path / "gt" / "b.png")
    pairs, report = found(tmp_path, "folders")
    assert len(pairs) == 2 and report.clean_bill
    assert "1 image in grey (read as RGB)" in report.text()
    assert "1 image with an opaque alpha channel" in report.text()
    assert load_pair(pairs[0])[0].shape == (20, 24, 3)


def test_the_older_its_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "_WHOLE_ITS", 3)
    make(tmp_path / "clear", "1.png")
    (tmp_path / "hazy").mkdir()
    for index in range(4):
        (tmp_path / "hazy" / f"{index}_1_0.9.png").touch()
    with pytest.raises(ValueError, match="4 hazy images; the older ITS “v0”"):
        found(tmp_path, "its")


def test_mixed_versions_of_its_are_errors_even_if_missing_pairs_are_allowed(tmp_path):
    make(tmp_path / "hazy", "1_1_0.9.png", "1_1_0.85.png", "1_12_0.7.png")
    make(tmp_path / "clear", "1.png")
    _, report = found(tmp_path, "its")
    with pytest.raises(ValueError, match=r"levels above 10.*1_12_0.7.png.*two versions are mixed"):
        check_or_raise(report, allow_missing=True)


def test_another_set_than_asked_for_is_recognised_by_its_names(tmp_path):
    sots(tmp_path)
    _, report = found(tmp_path, "its", "train")
    words = "by their names these are images of RESIDE SOTS indoor, not of RESIDE ITS"
    assert any(finding.message == words for finding in report.of("warning"))
    assert report.summary == "RESIDE SOTS indoor: 6 of 500 pairs"
    _, report = found(tmp_path, "its", "test")  # ITS is scored on SOTS indoor: not worth a warning
    assert any(finding.message == words for finding in report.of("note"))
    make(tmp_path / "hazy", "1400_haze.png")
    _, report = found(tmp_path, "sots_indoor")
    named = [finding.items for finding in report.of("warning") if "unlike those of" in finding.message]
    assert named == [("1400_haze.png",)]


def test_train_and_test_folders_of_one_root(tmp_path):
    for part, name in (("train", "1_1_0.9"), ("test", "1400_1")):
        make(tmp_path / part / "hazy", f"{name}.png")
        make(tmp_path / part / "GT", f"{name}.png")
    assert partners(found(tmp_path, "its")[0]) == {"1_1_0.9.png": "1_1_0.9.png"}
    assert partners(found(tmp_path, "sots_indoor")[0]) == {"1400_1.png": "1400_1.png"}
    assert partners(found(tmp_path, "folders", "test")[0]) == {"1400_1.png": "1400_1.png"}


def test_duplicates_are_warned_of(tmp_path):
    make(tmp_path / "hazy", "a.png", "b.png", "c.png")
    make(tmp_path / "gt", "a.png", "b.png", "c.png")
    shutil.copy(tmp_path / "hazy" / "a.png", tmp_path / "hazy" / "b.png")
    shutil.copy(tmp_path / "hazy" / "c.png", tmp_path / "gt" / "c.png")
    _, report = found(tmp_path, "folders")
    warnings = {finding.message: finding.items for finding in report.of("warning")}
    assert warnings["1 degraded image present more than once"] == ("a.png = b.png",)
    assert warnings["1 pair of identical images"] == ("c",)


def test_two_files_that_could_both_be_the_partner_are_left_out(tmp_path):
    make(tmp_path / "hazy", "1_1_0.9.png", "2_1_0.9.png")
    make(tmp_path / "clear", "1.png", "01.png", "2.png")
    pairs, report = found(tmp_path, "its")
    assert partners(pairs) == {"2_1_0.9.png": "2.png"}
    assert report.omitted == ("1_1_0.9.png fits 1.png and 01.png",) or report.omitted == (
        "1_1_0.9.png fits 01.png and 1.png",
    )
    make(tmp_path / "clear", "2.jpg")
    _, report = found(tmp_path, "its")
    assert any("2.png next to 2.jpg" in item for item in report.omitted)


def test_other_files_are_counted_and_hidden_ones_ignored(tmp_path):
    sots(tmp_path)
    (tmp_path / "hazy" / "readme.txt").write_text("hello")
    (tmp_path / "hazy" / "._1400_1.png").write_bytes(b"left by a Mac")
    (tmp_path / "hazy" / ".DS_Store").write_bytes(b"")
    _, report = found(tmp_path, "sots_indoor")
    assert report.clean_bill
    assert any(finding.items == ("readme.txt",) for finding in report.of("note"))


def test_nothing_to_pair_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError):
        found(tmp_path / "absent", "its")
    with pytest.raises(ValueError, match=r"no RESIDE ITS found; expected a folder named hazy\|haze"):
        found(tmp_path, "its")
    (tmp_path / "hazy").mkdir()
    make(tmp_path / "gt", "1.png")
    with pytest.raises(ValueError, match="hazy: no images in this folder"):
        found(tmp_path, "its")
    with pytest.raises(ValueError, match=r"data set: expected one of its, sots_indoor.* found 'reside'"):
        found(tmp_path, "reside")
    with pytest.raises(ValueError, match="split must be train or test, found 'val'"):
        found(tmp_path, "its", "val")
    make(tmp_path / "GT", "1.png")
    make(tmp_path / "hazy", "1_1_1.png")
    with pytest.raises(ValueError, match="both GT and gt could be meant"):
        found(tmp_path, "its")
