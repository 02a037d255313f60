import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.release import release_features

SPEC = UNetSpec(16, 32, 1, (), (1,), num_head_channels=16)


class Recorder:
    """In place of a U-Net: gives back what it was handed."""

    def __call__(self, x, t):
        return jnp.concatenate([x, jnp.broadcast_to(t[:, None, None, None], x.shape)], -1)


@pytest.mark.usefixtures("as_at_run_time")
def test_the_u_net_gets_alpha_bar_as_timestep_and_noise_at_both_times():
    schedule = Schedule.named("linear")
    x = jax.random.uniform(jax.random.key(1), (2, 64, 64, 3), minval=-1)
    maps = release_features(Recorder(), schedule, x, jax.random.key(0))
    noises = []
    for features, alpha_bar in zip(maps, schedule.alphas_cumprod[[0, 500]], strict=True):
        np.testing.assert_allclose(features[..., 3:], alpha_bar, rtol=1e-6)
        noise = (features[..., :3] - np.sqrt(alpha_bar) * x) / np.sqrt(1 - alpha_bar)
        # 12,288 draws: the standard error of mean and deviation is below 0.01.
        assert abs(noise.mean()) < 0.04 and abs(noise.std() - 1) < 0.04
        noises.append(np.asarray(noise))
    # Four maps, four noises.
    flat = np.concatenate(noises).reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.05


def test_maps_have_the_images_size_and_do_not_depend_on_the_batch():
    unet = UNet(SPEC, rngs=nnx.Rngs(0))
    unet.out_conv.kernel[...] = jax.random.normal(jax.random.key(2), unet.out_conv.kernel.shape)
    schedule = Schedule.named("linear")
    x = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1)
    run = jax.jit(lambda x: release_features(unet, schedule, x, jax.random.key(0)))
    both, first = run(x), run(x[:1])
    for batch, single in zip(both, first, strict=True):
        assert batch.shape == (2, 8, 12, 6)
        np.testing.assert_allclose(batch[:1], single, rtol=1e-4, atol=1e-5)
        assert np.ptp(single) > 0
