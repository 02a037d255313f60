import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from difflid_jax.data.haze import add_haze
from difflid_jax.data.photographs import photographs
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.prior import load_prior
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.restoration import tiles
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.restoration.restorer import Restorer
from difflid_jax.weights import store

RNG = np.random.default_rng(0)


def scene(height, width):
    """Smooth shapes with edges and a little texture, float32 in [0,1]."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    base = 0.5 + 0.3 * np.sin(9 * x + 4 * y) * np.cos(7 * y)
    base += 0.15 * ((x * 6 % 1 > 0.5) ^ (y * 5 % 1 > 0.5))
    image = np.stack([base, base**1.2, 0.9 * base + 0.05], -1) + RNG.normal(0, 0.02, (height, width, 3))
    return np.clip(image, 0, 1).astype(np.float32)


def test_what_it_computes_is_the_network_on_its_features(restorer, restorer_folder, prior_folder):
    unet, schedule, _ = load_prior(prior_folder)
    weights = store.read(restorer_folder, "restorer")
    network = DiffLI2D(NetworkSpec.from_dict(weights.architecture), rngs=nnx.Rngs(5))
    store.fill(network, weights.tensors, where="")

    @jax.jit
    def restore(x):
        maps = h_space(unet, schedule, x, jax.random.key(0), HSpaceSpec())
        return network(x, *maps)[0]

    hazy = scene(64, 64)
    expected = np.clip((np.asarray(restore((hazy * 2 - 1)[None])[0]) + 1) / 2, 0, 1)
    found = restorer.restore_array(hazy)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The tests below would say little about a restorer that does little.
    assert np.abs(found - hazy).mean() > 0.03
    np.testing.assert_array_equal(restorer.restore_array(hazy), found)


@pytest.mark.parametrize("size", [(1, 1), (61, 50)])
def test_any_size(restorer, size):
    hazy = (scene(64, 64)[: size[0], : size[1]] * 255).astype(np.uint8)
    restored = restorer(hazy)
    assert restored.shape == hazy.shape and restored.dtype == np.uint8
    assert (restored != hazy).any()


def test_all_kinds_say_the_same(restorer):
    hazy = (scene(64, 64) * 255).astype(np.uint8)
    restored = restorer(hazy).astype(int)
    as_float = restorer(hazy.astype(np.float32) / 255)
    as_deep = restorer(hazy.astype(np.uint16) * 257)
    as_image = restorer(Image.fromarray(hazy))
    as_batch = restorer(hazy[None])
    assert np.abs(as_float * 255 - restored).max() <= 0.51
    assert np.abs(as_deep / 257 - restored).max() <= 0.51
    np.testing.assert_array_equal(np.array(as_image), restored)
    np.testing.assert_array_equal(as_batch[0], restored)


def test_grey_comes_back_grey(restorer):
    grey = (scene(64, 64)[..., 0] * 255).astype(np.uint8)
    restored = restorer(grey)
    assert restored.shape == grey.shape
    colour = restorer(np.repeat(grey[..., None], 3, -1))
    np.testing.assert_allclose(restored, colour @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_strength_goes_from_the_input_to_the_restored_image(restorer):
    hazy = scene(64, 64)
    full, half = restorer(hazy), restorer(hazy, strength=0.5)
    np.testing.assert_array_equal(restorer(hazy, strength=0), hazy)
    np.testing.assert_allclose(half, (full + hazy) / 2, atol=1e-6)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "0.5"])
def test_a_strength_outside_0_to_1_is_refused(restorer, strength):
    with pytest.raises(ValueError, match="strength"):
        restorer(scene(64, 64), strength=strength)


@pytest.fixture
def in_tiles(restorer):
    return dataclasses.replace(restorer, tile=tiles.LEAST_TILE)


def smooth(height, width):
    y, x = np.mgrid[:height, :width] / width
    return np.stack([0.4 + 0.3 * x, 0.5 + 0.2 * y, 0.6 - 0.2 * x * y], -1).astype(np.float32)


def test_tiles_do_not_show(in_tiles):
    """Same features and gates: tiles give what one piece gives, up to the order of sums."""
    hazy = scene(250, 330)
    progress = []
    found = in_tiles(hazy, on_tile=lambda *count: progress.append(count))
    assert progress == [(i + 1, 4) for i in range(4)]
    in_one = dataclasses.replace(in_tiles, tile="off")
    whole = in_one.restore_array(hazy)
    assert np.abs(found - whole).max() <= 0.02 / 255
    # They would show: a part with features and gates of its own is another image.
    alone = in_one.restore_array(hazy[:64, :64])
    assert np.abs(alone - whole[:64, :64])[:32, :32].mean() > 0.3 / 255


def test_flip_is_the_mean_with_the_mirror_image(restorer):
    class InTwoBands(Restorer):
        """Padded by 3 rows and 2 columns, and different at the left and at the right."""

        def _bands(self, pixels, on_tile):
            x = np.pad(pixels * 2 - 1, [(0, 3), (0, 2), (0, 0)])
            x *= np.linspace(0.5, 0.9, x.shape[1], dtype=np.float32)[:, None]
            for i, rows in enumerate((slice(0, 40), slice(40, None))):
                on_tile(i + 1, 2)
                yield rows.start, x[rows]

    hazy, progress = scene(61, 50), []
    plain = InTwoBands(restorer.programs, restorer.params, restorer.frozen)
    flip = dataclasses.replace(plain, ensemble="flip")
    found = flip.restore_pixels(hazy, 1, lambda *count: progress.append(count))

    def silent(*_):
        pass

    mirrored = plain.restore_pixels(np.ascontiguousarray(hazy[:, ::-1]), 1, silent)[:, ::-1]
    expected = plain.restore_pixels(hazy, 1, silent)
    assert np.abs(mirrored - expected).mean() > 0.01
    np.testing.assert_array_equal(found, (expected + mirrored) / 2)
    assert progress == [(i + 1, 4) for i in range(4)]
    with pytest.raises(ValueError, match="ensemble: expected one of none, flip, found 'rotate'"):
        dataclasses.replace(restorer, ensemble="rotate")


def test_maps_are_what_the_network_is_given(restorer):
    hazy = scene(64, 64)
    expected = restorer.programs.see(restorer.frozen, hazy[None] * 2 - 1, jax.random.key(0))
    for found, h in zip(restorer.maps(hazy), expected, strict=True):
        np.testing.assert_array_equal(found, h[0])


def test_a_large_image_is_looked_at_as_a_whole_at_the_working_size(in_tiles, monkeypatch):
    """No seams; what the smaller view changes is measured on photographs (scripts/benchmarks/restore.py)."""
    monkeypatch.setattr(tiles, "WORKING_PIXELS", 96 * 128)
    hazy = smooth(300, 410)
    change = in_tiles(hazy) - hazy
    assert np.abs(change).mean() > 0.01
    steps = np.abs(np.diff(change, axis=0)).mean((1, 2)), np.abs(np.diff(change, axis=1)).mean((0, 2))
    for step, length in zip(steps, (300, 412), strict=True):
        seams = np.zeros(len(step), bool)
        for span in tiles.spans(length, tiles.LEAST_TILE, 4, 16)[1:]:
            seams[span.first - 1 : span.first + tiles.RAMP] = True
        assert step[seams].max() <= step[~seams].max() + 0.01 / 255


def test_an_image_of_any_size_is_restored_from_its_own_pixels_only(restorer, monkeypatch):
    """Nothing that is padded reaches features or gates: more padding changes what lies at the cut alone."""
    hazy = scene(64, 64)[:57, :50]
    stride = restorer.programs.geometry.stride
    found = restorer.restore_array(hazy)
    assert found.shape == hazy.shape
    wider = dataclasses.replace(restorer.programs.geometry, stride=4 * stride)
    monkeypatch.setattr(restorer.programs, "geometry", wider)
    padded_more = restorer.restore_array(hazy)
    np.testing.assert_allclose(padded_more[:16, :16], found[:16, :16], atol=1e-5)


def test_a_thin_image_is_large_by_what_is_computed(restorer, monkeypatch):
    monkeypatch.setattr(tiles, "WORKING_PIXELS", 4 * 1024)
    pieces = []
    restorer(np.full((1, 2100, 3), 128, np.uint8), on_tile=lambda done, total: pieces.append(total))
    assert pieces[-1] > 1


def test_the_shipped_restorer_gives_what_it_gave_and_leaves_plain_images_alone():
    _, clean, depth = photographs("test")[0]
    clean, depth = clean[100:356, 100:420] / np.float32(255), depth[100:356, 100:420]
    hazy = add_haze(clean, depth, 1.2, 0.85)
    restorer = load_restorer("haze")
    restored = restorer.restore_array(hazy)
    before, after = (np.square(x - clean).mean() for x in (hazy, restored))
    assert after < before / 8
    expected = [[0.43329, 0.28602, 0.20538], [0.66235, 0.18915, 0.16978], [0.53386, 0.49856, 0.49657]]
    np.testing.assert_allclose(restored[::100, 0], expected, atol=0.1 / 255)
    for level in (0.5, 0.8):
        plain = restorer.restore_array(np.full((96, 128, 3), level, np.float32))
        np.testing.assert_allclose(plain, level, atol=5 / 255)
        assert np.abs(plain - np.median(plain, (0, 1))).max() <= 2 / 255


def test_sizes_of_one_padded_size_share_a_program(restorer):
    restorer(np.zeros((61, 63, 3), np.uint8))
    before = restorer.programs.compiled()
    for height, width in ((62, 62), (63, 61)):
        restorer(np.zeros((height, width, 3), np.uint8))
    assert restorer.programs.compiled() == before > 0


def test_an_image_that_is_not_finite_is_refused(restorer):
    broken = dataclasses.replace(restorer, params=jax.tree.map(lambda x: x * np.nan, restorer.params))
    with pytest.raises(ValueError, match="the restored image is not finite; use other weights"):
        broken((scene(64, 64) * 255).astype(np.uint8))


def test_a_workdir_is_taken_too(restorer_folder, tmp_path):
    (tmp_path / "weights").symlink_to(restorer_folder)
    assert load_restorer(tmp_path).facts["sha256"] == load_restorer(restorer_folder).facts["sha256"]


def test_weights_that_do_not_fit_are_refused(restorer_folder, prior_folder, tmp_path):
    weights = store.read(restorer_folder, "restorer")

    def saved(name, architecture=weights.architecture, **metadata):
        store.save(tmp_path / name, "restorer", weights.tensors, architecture, **weights.metadata | metadata)
        return tmp_path / name

    for folder, error, message in (
        (prior_folder, ValueError, "expected weights of kind 'restorer', found 'unet'"),
        (tmp_path / "nothing", FileNotFoundError, "expected the name of shipped weights"),
        (saved("later", weights.architecture | {"depth": 9}), ValueError, "architecture.*depth"),
        (
            saved("wider", weights.architecture | {"feature_channels": 64}),
            ValueError,
            "64 channels, found 32",
        ),
        (saved("other", prior_sha256="0" * 64), ValueError, "expected the prior with SHA-256 0000"),
        (saved("lost", prior=str(tmp_path / "gone")), FileNotFoundError, "prior of .*if it is elsewhere"),
        (saved("kind", features={"kind": "clip"}), ValueError, "features.kind"),
    ):
        with pytest.raises(error, match=message):
            load_restorer(folder)
    for dtype in ("float16", "double"):
        with pytest.raises(
            ValueError, match=f"dtype: expected one of auto, float32, bfloat16, found '{dtype}'"
        ):
            load_restorer(restorer_folder, dtype=dtype)
    found = load_restorer(saved("moved", prior=str(tmp_path / "gone")), prior=prior_folder)
    assert isinstance(found, Restorer)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("tile", ["large", 64, 1.5, True])
def test_a_tile_that_is_no_size_is_refused(restorer_folder, tile):
    with pytest.raises(ValueError, match="tile: expected auto, off or 192"):
        load_restorer(restorer_folder, tile=tile)
