"""The h-space features: what is fed to the U-Net at t = 0 and t ≥ 1, which layer comes back, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec, feature_channels, h_space, pad_to_multiple

SPEC = UNetSpec(
    image_size=32,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 2),
    num_head_channels=16,
)
SCHEDULE = Schedule.named("linear")
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def unet():
    return UNet(SPEC, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def x():
    return jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1)


def test_content_is_the_clean_image_at_timestep_0_and_haze_is_equation_2(unet, x):
    h_content, h_haze = h_space(unet, SCHEDULE, x, KEY, HSpaceSpec())
    np.testing.assert_allclose(h_content, unet.encode(x, jnp.zeros(2))[0], atol=1e-5)
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(KEY, i), x.shape[1:]) for i in range(2)])
    alpha_bar = SCHEDULE.alphas_cumprod[500]
    noisy = np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(h_haze, unet.encode(noisy, jnp.full(2, 500.0))[0], atol=1e-5)


def test_noise_at_zero_is_the_releases_way(unet, x):
    quiet, _ = h_space(unet, SCHEDULE, x, KEY, HSpaceSpec())
    noisy, _ = h_space(unet, SCHEDULE, x, KEY, HSpaceSpec(noise_at_zero=True))
    assert 0 < float(jnp.abs(noisy - quiet).max()) < 1


def test_an_images_features_do_not_depend_on_its_batch(unet, x):
    alone = h_space(unet, SCHEDULE, x[:1], KEY, HSpaceSpec())
    together = h_space(unet, SCHEDULE, x, KEY, HSpaceSpec())
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b[:1], atol=1e-5)


@pytest.mark.parametrize("layer", ["middle", "encoder:1", "decoder:3", "output"])
def test_layers_are_those_of_the_u_net(unet, x, layer):
    spec = HSpaceSpec(layer=layer)
    h, _ = h_space(unet, SCHEDULE, x, KEY, spec)
    expected = unet.layers(x, jnp.zeros(2), wanted=[layer])[layer]
    np.testing.assert_allclose(h, expected, atol=1e-5)
    assert feature_channels(unet, spec) == h.shape[-1]


def test_side_shows_the_prior_every_image_at_one_size(unet, x):
    spec = HSpaceSpec(side=6)
    small = jax.image.resize(x, (2, 6, 6, 3), "linear")
    h, _ = h_space(unet, SCHEDULE, x, KEY, spec)
    np.testing.assert_allclose(h, unet.encode(small, jnp.zeros(2))[0], atol=1e-5)
    assert spec.multiple(SPEC) == 1 and feature_channels(unet, spec) == h.shape[-1]
    with pytest.raises(ValueError, match=r"features\.side: expected a multiple of 2, found 5"):
        HSpaceSpec(side=5).multiple(SPEC)


def test_no_gradient_flows_back(unet, x):
    gradient = jax.grad(lambda x: sum(h.sum() for h in h_space(unet, SCHEDULE, x, KEY, HSpaceSpec())))(x)
    assert not gradient.any()


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("times", [(0, 1000), (-1, 500), (0,)])
def test_timesteps_outside_the_process_are_refused(times):
    with pytest.raises(ValueError, match=r"features.times(\[.\])?: expected (0 to 999|a list of 2)"):
        HSpaceSpec(times=times)


@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (1, 1, 1, 3), (2, 16, 16, 3), (1, 2, 33, 3)])
def test_padding_reflects_and_crops_back(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    padded = pad_to_multiple(x, 16)
    assert padded.shape[1] % 16 == padded.shape[2] % 16 == 0
    np.testing.assert_array_equal(padded[:, : shape[1], : shape[2]], x)


def test_padding_equals_numpys_reflection_where_the_image_is_large_enough():
    x = np.arange(10 * 13 * 3, dtype=np.float32).reshape(1, 10, 13, 3)
    np.testing.assert_array_equal(
        pad_to_multiple(jnp.asarray(x), 8), np.pad(x, ((0, 0), (0, 6), (0, 3), (0, 0)), mode="reflect")
    )
