import itertools

import numpy as np
import pytest

from difflid_jax.restoration import tiles


@pytest.mark.parametrize(
    "tile, align", [*itertools.product((tiles.LEAST_TILE, 300, 768), (8, 16)), (384, 32)]
)
def test_tiles_cover_every_pixel_with_weights_that_sum_to_one(tile, align):
    for length in [align, 160, 192, 208, 304, 768, 784, 1600, 4000 // align * align, 20_000]:
        length -= length % align
        found = tiles.spans(length, tile, align, 4 * align)
        total = np.zeros(length)
        for span in found:
            assert 0 <= span.start <= span.first < span.last <= span.stop <= length
            assert span.stop - span.start <= tile
            assert span.start % align == 0
            total[span.first : span.last] += span.weights
        np.testing.assert_allclose(total, 1, rtol=1e-6)
        assert len({span.stop - span.start for span in found}) == 1
        # What a tile gives lies a margin away from every cut.
        for before, after in itertools.pairwise(found):
            assert before.stop - before.last >= 4 * align
            assert after.first - after.start >= 4 * align


def test_bands_put_together_are_the_image():
    image = np.random.default_rng(0).random((1000, 520, 3), np.float32)
    done = []
    bands = tiles.blend(
        tiles.grid(1000, 520, 256, 8, 32),
        lambda rows, columns: image[rows, columns],
        lambda *progress: done.append(progress),
    )
    first = 0
    for start, band in bands:
        assert start == first and len(band) < 300
        np.testing.assert_allclose(band, image[start : start + len(band)], atol=1e-6)
        first += len(band)
    assert first == 1000
    assert done[-1][0] == done[-1][1] == len(done)


def test_working_size_keeps_the_shape_and_the_amount():
    for height, width in ((3000, 4000), (4000, 2250), (600, 1000), (900, 900)):
        rows, columns = tiles.working_size(height, width, 32)
        assert rows % 32 == columns % 32 == 0
        assert abs(rows * columns / tiles.WORKING_PIXELS - 1) < 0.06
        assert abs(rows / columns / (height / width) - 1) < 0.05
    assert tiles.working_size(1, 10**6, 32)[0] == 32
    assert tiles.working_size(450, 1030, 64) == (448, 1024)
    for height, width in ((1, 10**6), (520_000, 1), (8, 8200)):
        rows, columns = tiles.working_size(height, width, 32)
        assert min(rows, columns) == 32 and max(rows, columns) > 32 and rows * columns <= 1.3 * 2**19


def test_tiles_too_small_to_overlap_are_refused():
    with pytest.raises(ValueError, match="192 px or more, found 100"):
        tiles.spans(1000, 100, 8, 32)
    # Six levels reach further.
    with pytest.raises(ValueError, match="384 px or more, found 320"):
        tiles.spans(1000, 320, 32, 128)
