"""Speed and nothing else: teacher cache, fleets, im2col layers, CUDA graphs."""
