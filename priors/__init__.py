"""What is learned beforehand: statistics of a model's features, as files. Pure torch, runs without ComfyUI."""
