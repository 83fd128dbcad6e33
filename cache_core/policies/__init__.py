"""One paper, one file."""

from .base import CachePolicy, Decline
from .eoc import EOC
from .fora import FORA
from .forecast import Forecast
from .full import Full
from .goc import GOC
from .taylor import Taylor

__all__ = ["EOC", "FORA", "GOC", "CachePolicy", "Decline", "Forecast", "Full", "Taylor"]
