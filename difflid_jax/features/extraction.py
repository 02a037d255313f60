"""The h-space of any picture, for whoever wants the features alone."""

import os
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from difflid_jax.features.h_space import HSpaceSpec, at_side, feature_channels, h_space, pad_to_multiple
from difflid_jax.features.prior import load_prior


class Extractor:
    """Pictures → features of a frozen diffusion model at chosen timesteps.

        extract = Extractor("weights/imagenet256", times=(0, 500))
        features = extract(picture)      # uint8 (H,W,3), or float in [0,1]
        features[500]                    # float32 (⌈H/32⌉, ⌈W/32⌉, 1024)

    weights: shipped name or folder of a diffusion model. times: timesteps from 0 (no noise) to 999. layer:
    "middle" (the h-space), "encoder:i", "decoder:i" or "output". Noise comes from `noise_seed`: the same for
    every picture of one size. side: see `HSpaceSpec`. Compiled once for each padded size of picture.
    Raises FileNotFoundError or ValueError for weights, times or layers that are not there.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        *,
        times: Sequence[int] = (0, 500),
        layer: str = "middle",
        noise_at_zero: bool = False,
        side: int = 0,
        noise_seed: int = 0,
        dtype=jnp.float32,
    ):
        self.times = tuple(dict.fromkeys(times))
        if not self.times:
            raise ValueError("times: expected at least one timestep, found none")
        # Two timesteps a pass, as the restorer reads them; noise does not depend on which stand together.
        pairs = [(t, self.times[min(i + 1, len(self.times) - 1)]) for i, t in enumerate(self.times)][::2]
        self.specs = [HSpaceSpec(pair, layer, noise_at_zero, side) for pair in pairs]
        unet, schedule, self.sha256 = load_prior(weights, part=self.specs[0].part, dtype=dtype)
        if any(t >= schedule.steps for t in self.times):
            raise ValueError(
                f"times: the model has timesteps 0 to {schedule.steps - 1}, found {max(self.times)}"
            )
        self.channels = feature_channels(unet, self.specs[0])
        self._multiple = self.specs[0].multiple(unet.spec)
        self._key = jax.random.key(noise_seed)
        graph, self._parameters = nnx.split(unet)

        @partial(jax.jit, static_argnums=3)
        def run(parameters, x, key, spec):
            return h_space(nnx.merge(graph, parameters), schedule, x, key, spec)

        self._run = run

    def __call__(self, picture: np.ndarray) -> dict[int, np.ndarray]:
        """{timestep: float32 (H',W',C')} of one picture, H' and W' covering it without the padding.

        Raises ValueError for anything but uint8, or floats in [0,1], of shape (H,W,3).
        """
        picture = np.asarray(picture)
        if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"expected a picture (H,W,3), found shape {picture.shape}")
        scale = 255.0 if picture.dtype == np.uint8 else 1.0
        if scale == 1.0 and not (picture.dtype.kind == "f" and picture.min() >= 0 and picture.max() <= 1):
            raise ValueError(f"expected uint8 or floats in [0,1], found {picture.dtype}")
        height, width = picture.shape[:2]
        x = jnp.asarray(picture[None], jnp.float32) * (2 / scale) - 1
        # Resized here, so that pictures of all sizes share one program.
        x = at_side(x, side) if (side := self.specs[0].side) else pad_to_multiple(x, self._multiple)
        found: dict[int, np.ndarray] = {}
        for spec in self.specs:
            for t, h in zip(spec.times, self._run(self._parameters, x, self._key, spec), strict=True):
                rows = -(-height * h.shape[1] // x.shape[1])
                columns = -(-width * h.shape[2] // x.shape[2])
                found[t] = np.asarray(h[0, :rows, :columns], np.float32)
        return {t: found[t] for t in self.times}
