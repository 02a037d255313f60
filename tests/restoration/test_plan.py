import dataclasses
import math

import pytest

from difflid_jax.restoration import tiles
from difflid_jax.restoration.plan import Geometry, Tiled, Whole, plan

PAPER = Geometry(stride=8, reach=32, multiple=32)


def test_the_network_is_padded_to_its_stride_and_the_view_is_the_nearest_size():
    assert plan(460, 620, PAPER) == Whole((460, 620), (464, 624), (448, 608))
    assert plan(460, 620, dataclasses.replace(PAPER, side=64)).view == (64, 64)
    assert plan(1, 1, PAPER) == Whole((1, 1), (8, 8), (32, 32))
    exact = plan(128, 128, PAPER)
    assert exact.padded == exact.view == exact.extent and exact.window is None
    assert plan(460, 624, PAPER).window == (0, 0, 464 / 460, 1)


def test_pixel_maps_see_the_padded_image():
    assert plan(460, 620, dataclasses.replace(PAPER, pixel_maps=True)) == Whole(*3 * [(480, 640)])


def test_a_large_image_is_tiled_with_an_overview_of_the_working_size():
    large = plan(3001, 4000, PAPER)
    assert isinstance(large, Tiled) and large.padded == (3008, 4000) and large.tile == tiles.TILE
    assert abs(math.prod(large.overview) / tiles.WORKING_PIXELS - 1) < 0.06
    assert large.survey == plan(*large.overview, PAPER, "off") and large.survey.window is None
    assert large.window(slice(0, 768), slice(3232, 4000)) == (0, 3232 / 4000, 768 / 3001, 1)
    # What is small is not shrunk first; what fits into one tile is one.
    small = plan(300, 410, PAPER, 192)
    assert small.overview == (300, 410) and small.survey == plan(300, 410, PAPER)
    assert plan(190, 192, PAPER, 192) == plan(190, 192, PAPER)
    assert isinstance(plan(1, 200_000, PAPER), Tiled)  # large by what is computed
    assert isinstance(plan(3001, 4000, PAPER, "off"), Whole)


def test_a_network_that_cannot_be_tiled_is_refused_large_images():
    attends = dataclasses.replace(PAPER, can_tile=False)
    assert isinstance(plan(1000, 2000, attends), Whole)
    with pytest.raises(
        ValueError, match=r"4000×3000: a network with self-attention .* up to 2\.1 megapixels"
    ):
        plan(3000, 4000, attends)
    assert isinstance(plan(3000, 4000, attends, "off"), Whole)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("tile", ["large", 64, 1.5, True])
def test_a_tile_that_is_no_size_is_refused(tile):
    with pytest.raises(ValueError, match="tile: expected auto, off or 192"):
        plan(10, 10, PAPER, tile)
