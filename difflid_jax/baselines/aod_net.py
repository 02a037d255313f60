"""AOD-Net (Li et al., ICCV 2017): one map K of the rewritten scattering model J = K·I − K + 1 (Eq. 4)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.baselines.layers import conv


class AODNet(nnx.Module):
    """AOD-Net, 1,761 parameters; layers and concatenations as in the authors' `test_template.prototxt`."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = conv(3, 3, 1, rngs=rngs)
        self.conv2 = conv(3, 3, 3, rngs=rngs)
        self.conv3 = conv(6, 3, 5, rngs=rngs)
        self.conv4 = conv(6, 3, 7, rngs=rngs)
        self.conv5 = conv(12, 3, 3, rngs=rngs)

    def __call__(self, hazy: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Dehaze images in [0,1]; the output is not below 0."""
        one = jax.nn.relu(self.conv1(hazy))
        two = jax.nn.relu(self.conv2(one))
        three = jax.nn.relu(self.conv3(jnp.concatenate([one, two], axis=-1)))
        four = jax.nn.relu(self.conv4(jnp.concatenate([two, three], axis=-1)))
        k = jax.nn.relu(self.conv5(jnp.concatenate([one, two, three, four], axis=-1)))
        return jax.nn.relu(k * hazy - k + 1)
