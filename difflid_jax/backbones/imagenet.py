"""What the ImageNet classifiers share: the scale and the size of their input."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

STRIDE = 32
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images in [-1,1] → the scale on which torchvision's ImageNet classifiers were trained."""
    return (x - jnp.asarray(2.0 * MEAN - 1.0, x.dtype)) / jnp.asarray(2.0 * STD, x.dtype)


def require_stride(x: Array) -> None:
    """Raise ValueError unless x is (B,H,W,3) with H and W multiples of 32."""
    if x.ndim != 4 or x.shape[-1] != 3 or x.shape[1] % STRIDE or x.shape[2] % STRIDE:
        raise ValueError(
            f"expected images (B, H, W, 3) with H and W multiples of {STRIDE}, found {x.shape}; "
            "pad them first (features.h_space.pad_to_multiple)"
        )
