"""What the ImageNet classifiers of this room share: the scale of their input and the size it must have."""

import jax.numpy as jnp
import numpy as np
from jax import Array

STRIDE = 32
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalised(x: Array) -> Array:
    """(B,H,W,3) in [-1,1] → the scale that torchvision's ImageNet classifiers were trained on."""
    return (x - jnp.asarray(2.0 * MEAN - 1.0, x.dtype)) / jnp.asarray(2.0 * STD, x.dtype)


def require_stride(x: Array) -> None:
    """Raises ValueError unless x is (B,H,W,3) with H and W multiples of 32."""
    if x.ndim != 4 or x.shape[-1] != 3 or x.shape[1] % STRIDE or x.shape[2] % STRIDE:
        raise ValueError(
            f"expected pictures (B, H, W, 3) with H and W multiples of {STRIDE}, found {x.shape}; "
            "pad them first (features.h_space.pad_to_multiple)"
        )
