"""Frozen maps of a hazy image to (content features, haze features), the network's other inputs."""
