"""Frozen maps  hazy picture → (content features, haze features)  that the network is told."""
