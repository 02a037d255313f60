"""DiffLI²D (ECCV 2024) in JAX/Flax: dehazing guided by the h-space of a frozen diffusion model."""

__version__ = "0.1.0"
