"""One paper, one file."""

from .base import CachePolicy
from .fora import FORA
from .full import Full

__all__ = ["FORA", "CachePolicy", "Full"]
