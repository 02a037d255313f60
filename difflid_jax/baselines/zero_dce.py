"""Zero-DCE (Guo et al., CVPR 2020): light-enhancement curves for each pixel, learned without references."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.baselines.layers import conv

WIDTH = 32
CURVES = 8


class ZeroDCE(nnx.Module):
    """DCE-Net, 79,416 parameters: seven 3×3 convolutions with symmetric skips predict eight curve maps A_n.

    The curves of Eq. 3 are applied in turn, LE_n = LE_{n−1} + A_n LE_{n−1}(1 − LE_{n−1}); the authors' file
    stores −A_n (`enhance_net_nopool` in Zero-DCE_code/model.py of Li-Chongyi/Zero-DCE).
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = conv(3, WIDTH, 3, rngs=rngs)
        self.conv2 = conv(WIDTH, WIDTH, 3, rngs=rngs)
        self.conv3 = conv(WIDTH, WIDTH, 3, rngs=rngs)
        self.conv4 = conv(WIDTH, WIDTH, 3, rngs=rngs)
        self.conv5 = conv(2 * WIDTH, WIDTH, 3, rngs=rngs)
        self.conv6 = conv(2 * WIDTH, WIDTH, 3, rngs=rngs)
        self.conv7 = conv(2 * WIDTH, 3 * CURVES, 3, rngs=rngs)

    def __call__(self, low: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Enhance images in [0,1]."""
        one = jax.nn.relu(self.conv1(low))
        two = jax.nn.relu(self.conv2(one))
        three = jax.nn.relu(self.conv3(two))
        four = jax.nn.relu(self.conv4(three))
        five = jax.nn.relu(self.conv5(jnp.concatenate([three, four], axis=-1)))
        six = jax.nn.relu(self.conv6(jnp.concatenate([two, five], axis=-1)))
        curves = jnp.tanh(self.conv7(jnp.concatenate([one, six], axis=-1)))
        enhanced = low
        for curve in jnp.split(curves, CURVES, axis=-1):
            enhanced = enhanced + curve * (enhanced**2 - enhanced)
        return enhanced
