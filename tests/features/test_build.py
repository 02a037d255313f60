"""What a frozen map must have before a network is built on it."""

import pytest
from flax import nnx

from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.build import build_features
from difflid_jax.weights import store

SPEC = UNetSpec(8, 32, 1, (), (1, 1), diffusion_steps=100)


def test_timesteps_that_the_prior_does_not_have_are_refused(tmp_path, drawn):
    """JAX would take the last one in their place."""
    store.save(
        tmp_path,
        "unet",
        store.tensors_of(drawn(lambda: UNet(SPEC, part="encoder", rngs=nnx.Rngs(0)))),
        SPEC.to_dict(),
    )
    with pytest.raises(ValueError, match="timesteps 0 to 99, found 500"):
        build_features("h_space", tmp_path)
