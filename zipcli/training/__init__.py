"""Trains a prior on images."""
