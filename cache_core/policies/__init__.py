"""One paper, one file."""

from .base import CachePolicy, Decline
from .fora import FORA
from .full import Full

__all__ = ["FORA", "CachePolicy", "Decline", "Full"]
