"""Finds trainable tensors that do not train: a layer cut off from the loss, a wrong optimizer, a gradient of zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

WATCHED_UPDATES = 20


@dataclass
class MovementWatch:
    """Compares a network before its first update with itself some updates later."""

    network: nn.Module
    first_update: int
    """Step of the network's first update."""
    _before: dict[str, Tensor] | None = None

    def look(self, step: int) -> list[str]:
        """To be called before the update of each `step`: once, names of tensors that have not moved; otherwise none.

        A run resumed in between has nothing to compare with and is not watched.
        """
        if step == self.first_update:
            self._before = {name: parameter.detach().clone() for name, parameter in self._trainable()}
        if step != self.first_update + WATCHED_UPDATES or self._before is None:
            return []
        before, self._before = self._before, None
        return [name for name, parameter in self._trainable() if parameter.detach().equal(before[name])]

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]
