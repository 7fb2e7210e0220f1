"""Builds the CUDA sources for the CPU and calls them from Python."""
