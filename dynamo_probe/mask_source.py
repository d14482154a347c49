"""The masks of a run, and how often its forward passes multiply with each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dynamo_probe.anatomy.multiply_adds import Uses, find_uses
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.twin import twin
from dynamo_probe.anatomy.weights import Weight, find_weights
from dynamo_probe.functional.connected import Masked
from dynamo_probe.source import NotMeasurable

if TYPE_CHECKING:
    from dynamo_probe.site import Site


class MaskSource:
    """Where the masks of a run come from: from its treatments, or from the zeros of its weights."""

    def __init__(self) -> None:
        """Begin without having looked."""
        self._found: Mapping[str, Weight] | None = None

    def read(self, site: Site) -> Masked:
        """Return the masks of the sparse treatments; without one, what is not exactly 0.

        Raises:
            NotMeasurable: when the treatments have made no masks yet.
        """
        if not site.connections:
            return self._zeros(site)
        found: Masked = {}
        for connections in site.connections:
            for name, weight in connections.weights.items():
                try:
                    mask = connections.mask_of(name)
                except KeyError:
                    continue  # it waits for a gradient
                found |= {name: (weight, mask)}
        if not found:
            raise NotMeasurable("the sparse treatment has made no masks yet")
        return found

    def _zeros(self, site: Site) -> Masked:
        if self._found is None:
            # In a twin nothing is frozen: a frozen weight is as sparse as a trained one.
            self._found = find_weights(twin(site.model, requires_grad=True)).found
        if not self._found:
            raise NotMeasurable("the model has no weight that could be pruned")
        own = dict(site.parameters())
        return {
            name: (replace(weight, parameter=own[name]), whole(own[name].detach()) != 0)
            for name, weight in self._found.items()
        }


class ProductSource:
    """How often the modules that the loop calls multiply with each weight, found once for each."""

    def __init__(self) -> None:
        """Begin without having looked."""
        self._uses: dict[str, Uses | str] = {}

    def read(self, site: Site) -> list[Uses]:
        """Return the uses of each module that the loop calls; of the model alone, if it is called.

        Raises:
            NotMeasurable: when something cannot be counted, with the reason.
        """
        batches = site.batches()
        prefixes = [""] if "" in batches else list(batches)
        return [self._of(site, prefix) for prefix in prefixes]

    def _of(self, site: Site, prefix: str) -> Uses:
        if prefix not in self._uses:
            module, batch = site.model.get_submodule(prefix), site.batches()[prefix]
            roots = {parameter: name for name, parameter in site.parameters()}
            try:
                found = find_uses(module, batch.args, batch.kwargs)
            except Exception as error:
                reason = f"the forward pass cannot be repeated ({type(error).__name__}: {error})"
                self._uses[prefix] = reason
            else:
                names = {name: roots[p] for name, p in module.named_parameters()}
                self._uses[prefix] = found.renamed(names)
        uses = self._uses[prefix]
        if isinstance(uses, str):
            raise NotMeasurable(uses)
        for name, reason in uses.uncounted.items():
            raise NotMeasurable(f"the multiply-adds of {name} cannot be counted: {reason}")
        return uses
