"""The caching engine: pure torch, runs and is tested without ComfyUI."""
