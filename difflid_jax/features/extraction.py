"""The h-space of any image, for users who want the features alone."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Shaped

from difflid_jax.compiled import bounded_jit
from difflid_jax.features.h_space import HSpaceSpec, feature_channels, h_space
from difflid_jax.features.prior import load_prior
from difflid_jax.features.view import resized, view_size


class Extractor:
    """Images → features of a frozen diffusion model at chosen timesteps.

        extract = Extractor("weights/imagenet256", times=(0, 500))
        features = extract(image)        # uint8 (H,W,3), or float in [0,1]
        features[500]                    # float32 (H/32, W/32, 1024), sides rounded

    weights: shipped name or folder of a diffusion model. times: timesteps from 0 (no noise) to 999. layer:
    "middle" (the h-space), "encoder:i", "decoder:i" or "output". side: see `HSpaceSpec`. noise_seed: the
    noise is the same for all images of one size. The model sees an image as the restorer shows it, resized
    to the nearest size that fits (see `view.py`).
    Raises FileNotFoundError or ValueError for missing weights, times or layers.
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
        dtype: Any = jnp.float32,
    ):
        self.times = tuple(dict.fromkeys(times))
        if not self.times:
            raise ValueError("times: expected at least one timestep, found none")
        # Two timesteps a pass, as the restorer reads them; the noise does not depend on the pairing.
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

        def run(parameters, x, key, spec):
            return h_space(nnx.merge(graph, parameters), schedule, x, key, spec)

        self._run = bounded_jit(run, static_argnums=(3,))

    def __call__(self, image: Shaped[Any, "..."]) -> dict[int, Float32[np.ndarray, "rows columns c"]]:
        """{timestep: float32 (H',W',C')} of one image, which the H' × W' positions cover exactly.

        Raises ValueError for anything but uint8, or floats in [0,1], of shape (H,W,3).
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"expected an image (H,W,3), found shape {image.shape}")
        scale = 255.0 if image.dtype == np.uint8 else 1.0
        if scale == 1.0 and not (image.dtype.kind == "f" and image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"expected uint8 or floats in [0,1], found {image.dtype}")
        x = image.astype(np.float32) * np.float32(2 / scale) - 1
        x = resized(x, view_size(*image.shape[:2], self._multiple, self.specs[0].side))[None]
        found: dict[int, np.ndarray] = {}
        for spec in self.specs:
            for t, h in zip(spec.times, self._run(self._parameters, x, self._key, spec), strict=True):
                found[t] = np.asarray(h[0], np.float32)
        return {t: found[t] for t in self.times}
