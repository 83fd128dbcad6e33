"""What GOC, EOC and Taylor have in common: another policy decides, they change what is used in place of computing."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import SettingError
from .base import CachePolicy
from .wrapper import Wrapper


@dataclass(frozen=True)
class Correction(Wrapper):
    """Raises SettingError when base itself changes what is reused, or has counted what may be kept."""

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.base.limit is not None:
            raise SettingError(
                f"{name} keeps outputs of its own, which the memory budget before it does not count; put the budget "
                f"behind {name}"
            )
        if type(self.base).reuse is not CachePolicy.reuse:
            raise SettingError(
                f"{name} corrects plain reuse, and {type(self.base).__name__} already replaces it; put "
                f"{name} on a policy that only decides, such as FORA or L2C"
            )

    @property
    def features(self) -> int:
        """How many past outputs the correction itself looks at."""
        return 1

    @property
    def history(self) -> int:
        return max(self.features, self.base.history) if self.base.history else 0
