"""One paper, one file."""

from .base import CachePolicy, Decline
from .fora import FORA
from .forecast import Forecast
from .full import Full

__all__ = ["FORA", "CachePolicy", "Decline", "Forecast", "Full"]
