"""The work of a step, the peak throughput of the devices, and the memory in use."""

import jax

# Dense bfloat16 throughput in FLOP/s from the vendors' data sheets, by the start of JAX's device name.
_PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p, by either of its names
    "TPU v6 lite": 918e12,
}


def flops(lowered: jax.stages.Lowered) -> float:
    """Floating-point operations of one call, a multiply-add counted as two; 0 if XLA does not report them.

    Counted before optimization, over all devices. The body of a loop (attention in chunks) counts once.
    """
    analysis = lowered.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0] if analysis else None
    return float((analysis or {}).get("flops", 0.0))


def peak() -> float:
    """FLOP/s of all devices together at their peak; 0 for devices that are not in the table."""
    return sum(_peak_of(device.device_kind) for device in jax.devices())


def peak_memory() -> int:
    """Peak memory of the first device in bytes; 0 if it is not reported (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _peak_of(kind: str) -> float:
    return next((value for name, value in _PEAKS.items() if kind.startswith(name)), 0.0)
