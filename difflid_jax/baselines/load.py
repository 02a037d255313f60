"""The baselines by name, all with one interface: images in, restored images out."""

from collections.abc import Callable

import numpy as np
from flax import nnx
from jaxtyping import Float

from difflid_jax.baselines.aod_net import AODNet
from difflid_jax.baselines.dark_channel import dark_channel_prior
from difflid_jax.baselines.dehazenet import DehazeNet, recover
from difflid_jax.baselines.iat import IAT
from difflid_jax.baselines.retinexnet import RetinexNet
from difflid_jax.baselines.uretinex_net import URetinexNet
from difflid_jax.baselines.zero_dce import ZeroDCE
from difflid_jax.compiled import bounded_jit
from difflid_jax.weights import schema, store

# float32 in [0,1], any batch and size → the same
Baseline = Callable[[Float[np.ndarray, "b h w 3"]], Float[np.ndarray, "b h w 3"]]

# By name, which is also the kind of their weights (`python -m convert_weights.peers`).
NETWORKS: dict[str, type[nnx.Module]] = {
    "aod_net": AODNet,
    "dehazenet": DehazeNet,
    "zero_dce": ZeroDCE,
    "retinexnet": RetinexNet,
    "uretinex_net": URetinexNet,
    "iat": IAT,
}
WITHOUT_WEIGHTS = ("identity", "dark_channel_prior")


def load_baseline(name: str, weights: store.Weights | None = None) -> Baseline:
    """The baseline `name`: one of `WITHOUT_WEIGHTS`, or of `NETWORKS` with `weights` of that kind.

    Networks are compiled for each image size. Raises ValueError for an unknown name and for weights that
    are missing or do not fit.
    """
    if name == "identity":
        return lambda images: images
    if name == "dark_channel_prior":
        return lambda images: np.stack([dark_channel_prior(image) for image in images])
    schema.check_choice("baseline", name, (*WITHOUT_WEIGHTS, *NETWORKS))
    if weights is None:
        raise ValueError(
            f"{name} needs its authors' weights: convert them with `python -m convert_weights.peers "
            f"--network={name} --source=FILE --output=FOLDER`"
        )
    network = nnx.eval_shape(lambda: NETWORKS[name](rngs=nnx.Rngs(0)))
    store.fill(network, weights.tensors, where=str(weights.path))
    run = bounded_jit(lambda images: network(images))
    if name == "dehazenet":
        return lambda images: np.stack(
            [recover(*pair) for pair in zip(images, np.asarray(run(images)), strict=True)]
        )
    return lambda images: np.clip(np.asarray(run(images)), 0, 1)
