"""The evaluation program: what it prints and writes, what it refuses, and the figures of real data sets."""

import csv
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

from convert_weights.peers import convert
from difflid_jax import evaluate as program
from difflid_jax.config import identity, schema
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.evaluation import tables
from difflid_jax.evaluation.methods import load_methods
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.images.files import read_image, write_png
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.weights import store


def run(*arguments: str) -> int:
    options = flags.FlagValues()
    program.define_flags(options)
    options(["evaluate", *arguments])
    return program.main([""], options)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Five hazy and clean pairs, 40×48."""
    random = np.random.default_rng(0)
    for folder in ("hazy", "clean"):
        (tmp_path / folder).mkdir()
    for number in range(5):
        clean = np.repeat(np.repeat(random.integers(0, 200, (10, 12, 3), np.uint8), 4, 0), 4, 1)
        write_png(tmp_path / "clean" / f"{number}.png", clean)
        hazy = np.rint(clean * (0.9 - number / 10) + 230 * (0.1 + number / 10)).astype(np.uint8)
        write_png(tmp_path / "hazy" / f"{number}_1.png", hazy)
    return tmp_path


@pytest.fixture
def pairs_flags(folders: Path) -> list[str]:
    return [f"--hazy={folders / 'hazy'}", f"--clean={folders / 'clean'}"]


@pytest.fixture(scope="module")
def peers(shared: Path, tmp_path_factory) -> Path:
    """AOD-Net's and DehazeNet's weights in our format."""
    folder = tmp_path_factory.mktemp("peers")
    for kind, file in (("aod_net", "aod_net.npz"), ("dehazenet", "dehazenet.mat")):
        store.save(folder / kind, kind, convert(kind, [shared / "data" / "peer_weights" / file]), {})
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, drawn) -> Path:
    """A run as training leaves it: a small network, its prior, a config."""
    folder = tmp_path_factory.mktemp("run")
    prior = UNetSpec(16, 32, 1, (), (1, 1), num_head_channels=16)
    unet = drawn(lambda: UNet(prior, rngs=nnx.Rngs(0)))
    store.save(folder / "prior", "unet", store.tensors_of(unet), prior.to_dict())
    spec = NetworkSpec(widths=(8, 16), feature_channels=prior.bottleneck_channels, heads=2)
    store.save(
        folder / "weights",
        "restorer",
        store.tensors_of(drawn(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0)))),
        spec.to_dict(),
        prior=str(folder / "prior"),
        prior_sha256=store.read(folder / "prior", "unet").sha256,
        features=HSpaceSpec(times=(0, 300)).to_dict(),
        noise_seed=5,
    )
    config = schema.default()
    config.evaluation.protocol = "uint8"
    config.data.dataset = "folders"
    (folder / "config.json").write_text(identity.to_json(config.to_dict()))
    return folder


def test_a_run_is_scored_with_its_own_weights_config_and_protocol(folders, workdir, capsys):
    config = identity.from_json((workdir / "config.json").read_text(), {})
    config.data.test = str(folders)
    (workdir / "config.json").write_text(identity.to_json(config.to_dict()))
    assert run(f"--workdir={workdir}", "--lpips=none") == 0
    written = json.loads((workdir / "evaluation" / "scores.json").read_text())
    restorer = load_restorer(workdir)
    assert written["method"] == "difflid" and written["protocol"] == "uint8" and written["seed"] == 5
    assert written["sha256"] == store.read(workdir / "weights", "restorer").sha256
    assert (written["parameters"], written["frozen_parameters"]) == (
        restorer.parameters,
        restorer.frozen_parameters,
    )
    restored = restorer(
        read_image(folders / "hazy" / "2_1.png")
    )  # uint8 in, uint8 out: the protocol's rounding
    error = restored.astype(float) - read_image(folders / "clean" / "2.png")
    assert written["images"][2]["psnr"] == pytest.approx(
        20 * np.log10(255) - 10 * np.log10((error**2).mean()), abs=1e-3
    )
    assert "| difflid " in capsys.readouterr().out
    rows = load_methods(["identity", "difflid"], [str(workdir), f"mine={workdir}"])
    assert [row.name for row in rows] == ["identity", f"difflid ({workdir / 'weights'})", "mine"]


def test_a_run_without_a_test_set_or_with_a_damaged_config_is_refused(workdir, tmp_path):
    config = schema.default()
    (tmp_path / "config.json").write_text(identity.to_json(config.to_dict()))
    with pytest.raises(program.UsageError, match=r"config\.data\.test"):
        run(f"--workdir={tmp_path}", f"--weights={workdir}", "--method=identity")
    for text in ("no JSON", "[]", identity.to_json(config.to_dict()).replace("seed", "sed")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config"):
            run(f"--workdir={tmp_path}", "--method=identity")


def test_means_images_csv_and_table_say_the_same(folders, pairs_flags, capsys):
    output = folders / "out" / "scores.json"
    assert run(*pairs_flags, "--method=identity,dark_channel_prior", f"--output={output}") == 0
    written = json.loads(output.read_text())
    printed = capsys.readouterr().out
    lines = list(csv.DictReader(output.with_suffix(".csv").read_text().splitlines()))
    assert [entry["method"] for entry in written["methods"]] == ["identity", "dark_channel_prior"]
    assert "Protocol `paper`" in printed and written["protocol"] == "paper"
    for entry in written["methods"]:
        assert [image["name"] for image in entry["images"]] == [f"{i}_1" for i in range(5)]
        own = [line for line in lines if line["method"] == entry["method"]]
        for metric, digits in (("psnr", 3), ("ssim", 4), ("lpips", 4)):
            values = [image[metric] for image in entry["images"]]
            assert entry["mean"][metric] == pytest.approx(np.mean(values), rel=1e-12)
            assert [float(line[metric]) for line in own] == values
            assert f"{entry['mean'][metric]:.{digits}f}" in printed
        sheet = read_image(output.with_suffix(f".{entry['method']}.png"))
        assert sheet.shape[0] > 5 * 40  # all five images: two worst, one between, two best
    hazy = np.stack([read_image(folders / "hazy" / f"{i}_1.png") for i in range(5)]) / 255
    clean = np.stack([read_image(folders / "clean" / f"{i}.png") for i in range(5)]) / 255
    expected = -10 * np.log10(((hazy - clean) ** 2).mean(axis=(1, 2, 3)))
    found = [image["psnr"] for image in written["methods"][0]["images"]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert {"jax", "python", "dm-pix"} <= written["versions"].keys()


def test_one_method_lies_at_the_top_of_the_json(folders, pairs_flags):
    output = folders / "scores.json"
    arguments = ["--method=identity", "--protocol=uint8", "--lpips=none", f"--output={output}"]
    assert run(*pairs_flags, *arguments) == 0
    written = json.loads(output.read_text())
    assert written["method"] == "identity" and written["protocol"] == "uint8"
    assert written["mean"].keys() == {"psnr", "ssim", "worse"} and len(written["images"]) == 5


def test_weights_bring_their_method_hash_and_size(folders, pairs_flags, peers):
    output = folders / "scores.json"
    weights = [peers / "aod_net", peers / "dehazenet"]
    run(*pairs_flags, f"--weights={weights[0]},{weights[1]}", "--lpips=none", f"--output={output}")
    entries = json.loads(output.read_text())["methods"]
    assert [(e["method"], e["parameters"]) for e in entries] == [("aod_net", 1761), ("dehazenet", 8305)]
    assert entries[0]["sha256"] == store.read(weights[0], "aod_net").sha256


def test_rows_of_the_same_method_are_told_apart(peers):
    net = peers / "aod_net"
    names = [method.name for method in load_methods([], [str(net), f"mine={net}"])]
    assert names == [f"aod_net ({net})", "mine"]
    with pytest.raises(ValueError, match="LABEL=FOLDER"):
        load_methods([], [str(net), str(net)])
    with pytest.raises(ValueError, match="not among the methods identity"):
        load_methods(["identity"], [str(net)])
    for names in (["x/1", "x 1"], ["comparison", "mine"]):  # each method's sheet is named after it
        with pytest.raises(ValueError, match=r"scores\..*\.png: two sheets would have this name"):
            tables.paths(Path("scores.json"), names)


def test_a_set_that_is_not_whole_is_scored_only_on_request_and_said_so(folders, pairs_flags, capsys):
    (folders / "clean" / "3.png").unlink()
    damaged = folders / "hazy" / "1_1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    output = folders / "scores.json"
    arguments = [*pairs_flags, "--method=identity", "--lpips=none", f"--output={output}"]
    with pytest.raises(ValueError, match=r"3_1\.png.*allow-missing") as refusal:
        run(*arguments)
    assert "1_1.png" in str(refusal.value) and not output.exists()
    assert run(*arguments, "--allow-missing") == 1
    printed = capsys.readouterr().out
    assert "Not the whole data set" in printed and "2 left out" in printed and "3 images" in printed
    left_out = json.loads(output.read_text())["data"]["left_out"]
    assert len(left_out) == 2 and any("3_1.png" in text for text in left_out)


def _text(path):
    path.write_text("no image")


def _saved(mode, size=(48, 40)):
    return lambda path: Image.new(mode, size).save(path, "TIFF" if mode == "CMYK" else "PNG")


def _bomb(path):
    """A few hundred bytes that say they are 20,000×20,000 pixels."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def _damaged_inside(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 30] = bytes(30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [_text, _damaged_inside, *(_saved(mode) for mode in ("I;16", "P", "CMYK", "RGBA")), _saved("RGB", (9, 9)),
     _saved("RGB", (45, 40)), _bomb, lambda path: path.write_bytes(b"")],
    ids=["text", "damaged", "16-bit", "palette", "CMYK", "transparent", "9×9", "other size", "bomb", "empty"],
)  # fmt: skip
def test_an_image_that_cannot_be_scored_is_named(spoil, folders, pairs_flags):
    spoil(folders / "hazy" / "2_1.png")
    with pytest.raises(ValueError, match=r"2_1\.png"):
        run(*pairs_flags, "--method=identity", "--lpips=none")


def test_images_restored_elsewhere(folders, pairs_flags):
    (folders / "restored").mkdir()
    for number in range(5):
        clean = read_image(folders / "clean" / f"{number}.png")
        off = clean if number == 4 else clean + np.uint8(1)
        write_png(folders / "restored" / f"{number}_1.png", off)
    output = folders / "scores.json"
    arguments = [*pairs_flags, f"--restored={folders / 'restored'}", "--lpips=none", f"--output={output}"]
    assert run(*arguments) == 0
    written = json.loads(output.read_text())
    psnr = [image["psnr"] for image in written["images"]]
    assert written["method"] == "restored" and psnr[4] == "inf" and written["equal_to_ground_truth"] == 1
    assert written["mean"]["psnr"] == pytest.approx(np.mean(psnr[:4]))
    np.testing.assert_allclose(psnr[:4], 20 * np.log10(255), atol=1e-3)
    (folders / "restored" / "2_1.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png"):
        run(*arguments, "--overwrite")


def test_several_programs_results_stand_in_one_table_beside_ours(folders, pairs_flags, capsys):
    for method, change in (("Theirs", 1), ("A/odd name", 3)):
        (folders / "results" / method.replace("/", "-")).mkdir(parents=True)
        for number in range(5):
            image = read_image(folders / "clean" / f"{number}.png") + np.uint8(change)
            write_png(folders / "results" / method.replace("/", "-") / f"{number}_1.png", image)
    output = folders / "scores.json"
    arguments = [*pairs_flags, f"--results={folders / 'results'}", "--lpips=none", f"--output={output}"]
    assert run(*arguments, "--method=identity") == 0
    methods = json.loads(output.read_text())["methods"]
    assert [method["method"] for method in methods] == ["identity", "A-odd name", "Theirs"]
    for method, change in zip(methods[1:], (3, 1), strict=True):
        assert method["mean"]["psnr"] == pytest.approx(20 * np.log10(255 / change), abs=1e-3)
    # One row an image, one column a method, between hazy and clean.
    sheet = read_image(output.with_suffix(".comparison.png"))
    assert sheet.shape[1] > 5 * 48 and "Theirs" in capsys.readouterr().out
    (folders / "results" / "Theirs" / "3_1.png").unlink()
    with pytest.raises(ValueError, match=r"Theirs: expected a restored image for each of 5 .* first 3_1"):
        run(*arguments, "--overwrite")


def test_nothing_is_overwritten_unless_asked_and_files_come_before_the_table(
    folders, pairs_flags, monkeypatch
):
    output = folders / "scores.json"
    arguments = [*pairs_flags, "--method=identity", "--lpips=none", f"--output={output}"]
    sheet = output.with_suffix(".identity.png")
    sheet.write_text("mine")
    with pytest.raises(program.UsageError, match=r"scores\.identity\.png: already exists; --overwrite"):
        run(*arguments)
    assert sheet.read_text() == "mine" and not output.exists()

    def fails(*_):
        raise OSError("no terminal")

    monkeypatch.setattr("builtins.print", fails)
    monkeypatch.setattr("difflid_jax.evaluation.test_sets.print", lambda *_, **__: None, raising=False)
    with pytest.raises(OSError, match="no terminal"):
        run(*arguments, "--overwrite")
    assert json.loads(output.read_text())["method"] == "identity" and sheet.read_bytes()[:4] == b"\x89PNG"
    monkeypatch.undo()
    with pytest.raises(program.UsageError, match=r"scores\.json: already exists"):
        run(*arguments)


def test_noise_seeds_and_the_mirrored_ensemble_are_rows_of_their_own(folders, workdir, pairs_flags, capsys):
    output = folders / "scores.json"
    run(
        *pairs_flags,
        f"--weights=ours={workdir}",
        "--lpips=none",
        "--noise_seeds=2",
        "--ensemble=flip",
        f"--output={output}",
    )
    written = json.loads(output.read_text())
    assert written["noise_seeds"] == 2
    ours, flipped = written["methods"]
    assert (ours["method"], flipped["method"]) == ("ours", "ours + flip") and flipped["ensemble"] == "flip"
    assert f"{ours['mean']['psnr']:.3f} ± {ours['spread']['psnr']:.3f}" in capsys.readouterr().out
    restorer = load_restorer(workdir)
    hazy = read_image(folders / "hazy" / "1_1.png").astype(np.float32) / 255
    clean = read_image(folders / "clean" / "1.png").astype(np.float32) / 255
    psnr, both = [], []
    for seed in (5, 6):
        restore = replace(restorer, noise_seed=seed).restore_array
        plain, mirrored = restore(hazy), restore(hazy[:, ::-1])[:, ::-1]
        psnr.append(-10 * np.log10(np.square(plain - clean).mean()))
        both.append(-10 * np.log10(np.square((plain + mirrored) / 2 - clean).mean()))
    assert psnr[0] != psnr[1]
    assert ours["images"][1]["psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert ours["images"][1]["psnr_std"] == pytest.approx(np.std(psnr, ddof=1), abs=1e-4)
    assert flipped["images"][1]["psnr"] == pytest.approx(np.mean(both), abs=1e-4)


def test_restored_images_must_be_as_many_as_hazy_ones(folders, pairs_flags):
    (folders / "restored").mkdir()
    for number in range(5):
        write_png(folders / "hazy" / f"{number}_2.png", read_image(folders / "hazy" / f"{number}_1.png"))
        write_png(folders / "restored" / f"{number}_2.png", read_image(folders / "hazy" / f"{number}_1.png"))
    arguments = [*pairs_flags, f"--restored={folders / 'restored'}", "--lpips=none"]
    with pytest.raises(ValueError, match=r"restored has 1 images for 0\.png, .*hazy has 2 \(5 clean"):
        run(*arguments)
    assert run(*arguments, "--allow_missing") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method=identity,dcp"], "method: expected one of identity, .* found 'dcp'"),
        (["--method=aod_net"], "convert_weights.peers"),
        (["--weights=nowhere"], "nowhere: expected the name of shipped weights"),
        (["--method=identity", "--output=scores.txt"], r"\.json"),
        (["--method=identity", "--output=/proc/nowhere/scores.json"], "/proc cannot be written"),
        (["--method=identity", "--fid=nowhere"], "nowhere: expected"),
        (["--method=identity", "--data=elsewhere"], "not both"),
        (["--restored=x", "--method=identity"], "leave out --method"),
        (["--restored=x", "--ensemble=flip"], "leave out --ensemble"),
        (["--method=identity", "--dataset=its"], "--dataset is the layout of --data"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, said, pairs_flags, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError, program.UsageError), match=said):
        run(*pairs_flags, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--hazy=a"],
        ["--clean=a"],
        ["--workdir=nowhere"],
        ["--data=nowhere", "--method=identity"],
        ["--protocol=ours"],
    ],
)
def test_bad_input_ends_with_one_line_and_status_2(arguments, tmp_path):
    if arguments not in ([], ["--protocol=ours"]):
        with pytest.raises((ValueError, OSError, program.UsageError)):
            run(*arguments)
        return
    result = subprocess.run(
        [sys.executable, "-m", "difflid_jax.evaluate", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1 and "evaluate" in result.stderr, result.stderr
    assert not list(tmp_path.iterdir())


# Real pairs.


def some_pairs(data: Path, folder: Path, names: list[str], border: int) -> Path:
    """Pairs of SOTS-indoor, the ground truth with a border around it as in the official 640×480 files."""
    for part in ("hazy", "gt"):
        (folder / part).mkdir(parents=True)
    for name in names:
        clean = read_image(data / "gt" / f"{name.split('_')[0]}.png")
        clean = np.pad(clean, ((border, border), (border, border), (0, 0)), mode="symmetric")
        write_png(folder / "gt" / f"{name.split('_')[0]}.png", clean)
        write_png(folder / "hazy" / f"{name}.png", read_image(data / "hazy" / f"{name}.png"))
    return folder


def test_an_uncropped_ground_truth_gives_the_figures_of_the_cropped_one(shared, tmp_path, peers, capsys):
    written = []
    for border in (0, 10):
        folder = some_pairs(shared / "data" / "sots_indoor_dev", tmp_path / str(border), ["1407_2"], border)
        output = tmp_path / f"{border}.json"
        run(f"--data={folder}", "--dataset=sots_indoor", "--method=identity,aod_net",
            f"--weights={peers / 'aod_net'}", "--lpips=none", f"--output={output}")  # fmt: skip
        written.append(json.loads(output.read_text()))
    for cropped, official in zip(*(w["methods"] for w in written), strict=True):
        assert cropped["images"] == official["images"]
    assert "centre-cropped" in capsys.readouterr().err
    hazy, aod_net = (entry["mean"]["psnr"] for entry in written[0]["methods"])
    assert aod_net > hazy + 2


@pytest.mark.slow
def test_figures_on_the_real_pairs_are_those_of_the_reference_tools(shared, tmp_path, peers):
    """The hazy input and AOD-Net, measured with PyTorch, Caffe's weights and a Gaussian SSIM."""
    expected = {
        ("sots_indoor_dev", "sots_indoor"): [(12.864, 0.7534), (19.865, 0.8684)],
        ("i_haze_dev", "folders"): [(14.091, 0.6278), (14.599, 0.6409)],
    }
    for (name, dataset), figures in expected.items():
        output = tmp_path / f"{name}.json"
        run(f"--data={shared / 'data' / name}", f"--dataset={dataset}", f"--weights={peers / 'aod_net'}",
            "--method=identity,aod_net,dark_channel_prior", "--lpips=none", f"--output={output}")  # fmt: skip
        entries = json.loads(output.read_text())["methods"]
        for entry, (psnr, ssim) in zip(entries, figures, strict=False):
            assert entry["mean"]["psnr"] == pytest.approx(psnr, abs=0.01)
            assert entry["mean"]["ssim"] == pytest.approx(ssim, abs=0.0005)
        if dataset == "sots_indoor":
            assert entries[2]["mean"]["psnr"] > entries[0]["mean"]["psnr"] + 4


def test_two_real_processes_give_the_scores_of_one(folders, pairs_flags):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = [*pairs_flags, "--method=identity,dark_channel_prior", "--lpips=none"]
    run(*arguments, f"--output={folders / 'one.json'}")
    command = [sys.executable, "-m", "difflid_jax.evaluate", *arguments, f"--output={folders / 'two.json'}"]
    # XLA's flags change the last bits: the processes get those of this one, which programs leave alone.
    environment = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    launched = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE)
        for number in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in launched]
    assert [process.returncode for process in launched] == [0, 0]
    assert b"Protocol" in printed[0] and b"Protocol" not in printed[1]
    one, two = (json.loads((folders / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["processes"] == 2
    for entry, other in zip(one["methods"], two["methods"], strict=True):
        assert entry["images"] == other["images"] and entry["mean"] == other["mean"]
