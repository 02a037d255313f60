"""Two small dehazing networks to compare with, as their authors published them.

AOD-Net (Li et al., ICCV 2017) predicts one map K of the rewritten scattering model J = K·I − K + b (their
Eq. 4, b = 1). DehazeNet (Cai et al., TIP 2016) predicts the transmission, and the haze-free picture follows
from the scattering model with the authors' own recovery (`run_cnn.m` of caibolun/DehazeNet).
Both run on the weights that `python -m convert_weights.peers` makes of their authors' files.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from difflid_jax.baselines.guided_filter import guided_filter, luma

_GUIDE_RADIUS, _GUIDE_EPSILON = 50, 1e-3
# Where the filtered map is zero or less the authors' code divides by it; we divide by this.
_LEAST_TRANSMISSION = 1e-3


class AODNet(nnx.Module):
    """AOD-Net, 1,761 parameters: hazy (B,H,W,3) in [0,1] → restored, same shape, not below 0.

    Layers and concatenations as in the authors' `test_template.prototxt`.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = _conv(3, 3, 1, rngs)
        self.conv2 = _conv(3, 3, 3, rngs)
        self.conv3 = _conv(6, 3, 5, rngs)
        self.conv4 = _conv(6, 3, 7, rngs)
        self.conv5 = _conv(12, 3, 3, rngs)

    def __call__(self, hazy: jax.Array) -> jax.Array:
        one = jax.nn.relu(self.conv1(hazy))
        two = jax.nn.relu(self.conv2(one))
        three = jax.nn.relu(self.conv3(jnp.concatenate([one, two], axis=-1)))
        four = jax.nn.relu(self.conv4(jnp.concatenate([two, three], axis=-1)))
        k = jax.nn.relu(self.conv5(jnp.concatenate([one, two, three, four], axis=-1)))
        return jax.nn.relu(k * hazy - k + 1)


class DehazeNet(nnx.Module):
    """DehazeNet, 8,305 parameters: hazy (B,H,W,3) in [0,1] → transmission (B,H,W) in [0,1].

    Four steps (Fig. 3 of the paper): features with Maxout, three scales in parallel, the local maximum,
    regression with a bilateral ReLU. Convolutions mirror the border, as the authors' Matlab code does.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.features = _conv(3, 16, 5, rngs, padding="VALID")
        self.scale3 = _conv(4, 16, 3, rngs, padding="VALID")
        self.scale5 = _conv(4, 16, 5, rngs, padding="VALID")
        self.scale7 = _conv(4, 16, 7, rngs, padding="VALID")
        self.regression = _conv(48, 1, 6, rngs, padding="VALID")

    def __call__(self, hazy: jax.Array) -> jax.Array:
        f = self.features(_mirror(hazy - 0.5, 2, 2))
        f = f.reshape(*f.shape[:-1], 4, 4).max(axis=-1)
        scales = (self.scale3(_mirror(f, 1, 1)), self.scale5(_mirror(f, 2, 2)), self.scale7(_mirror(f, 3, 3)))
        f = jnp.concatenate(scales, axis=-1)
        for window in ((1, 7, 1, 1), (1, 1, 7, 1)):
            f = jax.lax.reduce_window(f, -jnp.inf, jax.lax.max, window, (1, 1, 1, 1), "SAME")
        return jnp.clip(self._regress(f), 0, 1)

    def _regress(self, f: jax.Array) -> jax.Array:
        """The 6×6 convolution to one channel, as a sum of 36 taps: XLA's own takes ten times as long."""
        kernel = self.regression.kernel[..., 0].reshape(36, -1)
        # Matlab's imfilter puts the centre of a 6×6 kernel at its third row and column.
        taps = jnp.einsum("bhwc,kc->bhwk", _mirror(f, 2, 3), kernel, precision=jax.lax.Precision.HIGHEST)
        height, width = f.shape[1:3]
        shifted = (taps[:, i : i + height, j : j + width, 6 * i + j] for i, j in np.ndindex(6, 6))
        return sum(shifted) + self.regression.bias[...]


def recover(image: np.ndarray, transmission: np.ndarray) -> np.ndarray:
    """DehazeNet's last step: (H,W,3) in [0,1] and its transmission (H,W) → haze-free float32, clamped.

    The atmospheric light is the brightest pixel's colour among the 1 % with the least transmission, the
    transmission is refined with a grey guided filter (r = 50, ε = 1e-3), and J = (I − A)/t + A.
    """
    image, transmission = np.asarray(image, np.float64), np.asarray(transmission, np.float64)
    grey = luma(image)
    rank = max(0, int(np.floor(0.01 * transmission.size + 0.5)) - 1)
    haziest = transmission <= np.partition(transmission.ravel(), rank)[rank]
    airlight = image[haziest & (grey >= grey[haziest].max())].mean(axis=0)
    refined = guided_filter(grey, transmission, _GUIDE_RADIUS, _GUIDE_EPSILON)
    clean = (image - airlight) / np.maximum(refined, _LEAST_TRANSMISSION)[..., None] + airlight
    return np.clip(clean, 0, 1).astype(np.float32)


def _conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, padding: str = "SAME") -> nnx.Conv:
    # Full float32 on every device: these are scores that others compare with.
    return nnx.Conv(
        inputs, outputs, (size, size), padding=padding, precision=jax.lax.Precision.HIGHEST, rngs=rngs
    )


def _mirror(x: jax.Array, before: int, after: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), mode="symmetric")
