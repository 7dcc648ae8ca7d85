"""Layers with the weights and names of torch's, faster than those on CPUs; elsewhere they are torch's."""
