"""One paper, one file."""

from .base import CachePolicy, Decline
from .budget import Budget
from .duca import DuCa
from .eoc import EOC
from .fora import FORA
from .forecast import Forecast
from .full import Full
from .goc import GOC
from .l2c import L2C
from .taylor import Taylor
from .toca import ToCa

__all__ = [
    "EOC", "FORA", "GOC", "L2C", "Budget", "CachePolicy", "Decline", "DuCa", "Forecast", "Full", "Taylor", "ToCa",
]  # fmt: skip
