"""Diffusion priors: networks, their weights, and where those are found."""
