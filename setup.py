"""What pyproject.toml cannot say: the wheel carries `configs/` as the package `difflid_jax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["difflid_jax*", "convert_weights*"]), "difflid_jax.configs"],
    package_dir={"difflid_jax.configs": "configs"},
    package_data={"difflid_jax": ["assets/**/*.safetensors", "assets/**/*.md", "web/page.html"]},
)
