"""libvips as a decoder and an encoder of whole files in memory."""

import numpy as np

from difflid_jax.images.codecs import Samples


def decode(data: bytes, loader: str) -> Samples:
    """Decode with the operation `loader`, such as "pngload_buffer".

    Raises: ValueError with libvips' message for damaged or truncated data; MemoryError.
    """
    return _called(lambda image: getattr(image, loader)(data, access="sequential", fail_on="error").numpy())


def encode(samples: Samples, saver: str, **options: str | int | bool) -> bytes:
    """Encode with the operation `saver`, such as "pngsave_buffer", without metadata. Raises: ValueError."""
    deep = samples.dtype == np.uint16
    grey, colour = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    kind = grey if samples.shape[2] < 3 else colour

    def save(image):
        source = image.new_from_array(np.ascontiguousarray(samples)).copy(interpretation=kind)
        return getattr(source, saver)(keep="none", **options)

    return _called(save)


def _called(operation):
    # Here, because loading libvips takes time that other programs need not spend.
    import pyvips

    pyvips.cache_set_max(0)
    try:
        result = operation(pyvips.Image)
    except pyvips.Error as error:
        raise ValueError(_first_of(str(error))) from None
    return result if isinstance(result, bytes) or result.ndim == 3 else result[..., None]


def _first_of(message: str) -> str:
    """The first of libvips' messages, which repeat."""
    lines = [line.partition(": ")[2].strip() for line in message.splitlines()]
    return next((line for line in lines if line and line != "load error"), message.strip())
