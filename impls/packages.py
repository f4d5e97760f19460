"""Packages that peers need: whether they are installed, asked without importing them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution that an implementation needs.

    Attributes:
        name: of the distribution.
        at_least: the oldest release that was tried.
        preload: modules that take so long to import that a process that forks others should do it once for all.
        pins_torch: whether it asks for one old release of torch, which an ordinary installation would bring back.
    """

    name: str
    at_least: str
    preload: tuple[str, ...] = ()
    pins_torch: bool = False

    def version(self) -> str | None:
        """What is installed; None where nothing is."""
        try:
            return version(self.name)
        except PackageNotFoundError:
            return None

    def missing(self) -> str | None:
        """Why it cannot be used here and how to change that, or None where it can."""
        found = self.version()
        how = f"pip install {'--no-deps ' if self.pins_torch else ''}'{self.name}>={self.at_least}'"
        if found is None:
            return f"{self.name} is not installed: {how}"
        if _numbers(found) < _numbers(self.at_least):
            return f"{self.name} {found} is older than {self.at_least}: {how}"
        return None


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers that a release begins with."""
    found = re.match(r"\d+(\.\d+)*", release)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


TRANSFORMERS = Package(
    "transformers", "5.23", preload=("transformers.integrations.moe", "transformers.models.mixtral.modeling_mixtral")
)
MIXTURE_OF_EXPERTS = Package("mixture-of-experts", "0.2.3")
ST_MOE_PYTORCH = Package("st-moe-pytorch", "0.1.8")
PYTORCH_MIXTURES = Package("pytorch-mixtures", "0.1.5", pins_torch=True)
