"""Class-conditional DiT, which the host does not have: module, checkpoint reading, and its place in ComfyUI."""
