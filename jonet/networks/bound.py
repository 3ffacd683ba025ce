"""A network with its parameters: what fitting, encoding, extraction and export need of a trained network."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import struct

from jonet import parallel, products
from jonet.chips import Precision
from jonet.networks.field import Field, padded_rows
from jonet.wording import counted


@struct.dataclass
class BoundNetwork:
    """A network module with its parameters; a pytree, so that compiled functions take it as one argument.

    module: the network, whose `fold(shared, batch_stats, code) → Field` gives one shape; static and hashable.  If
    some of its arrays follow from others, it has `stored`, `restored` and `num_parameters`, as `SplineNetwork` has.
    shared: parameters common to all shapes.  batch_stats: running statistics of batch norms, {} without.
    precision: of matrix products in fits, encoding and the fields of codes (`products.precise`).
    """

    module: Any = struct.field(pytree_node=False)
    shared: Any
    batch_stats: Any = struct.field(default_factory=dict)
    precision: Precision = struct.field(pytree_node=False, default=products.DEFAULT)

    def __repr__(self) -> str:
        # leaves may be placeholders of JAX's transformations, so this does not read them
        return (
            f"BoundNetwork({type(self.module).__name__}, {counted(len(jax.tree.leaves(self.shared)), 'shared array')})"
        )

    @property
    def specs(self) -> Any:
        """The options of the module, a dataclass."""
        return self.module.specs

    @property
    def latent_size(self) -> int:
        """Numbers in a code, L."""
        return self.module.specs.latent_size

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and running statistics as `module.apply` takes them."""
        return {**self.shared, "batch_stats": self.batch_stats}

    @property
    def num_parameters(self) -> int:
        """Count of the shared parameters."""
        if hasattr(self.module, "num_parameters"):
            return self.module.num_parameters(self.shared)
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.shared))

    @property
    def stored(self) -> Any:
        """The shared arrays that a file keeps."""
        return self.module.stored(self.shared) if hasattr(self.module, "stored") else self.shared

    @staticmethod
    def restored(module, stored, batch_stats, precision: Precision) -> BoundNetwork:
        """The network of arrays that were `stored`; ValueError for such as its module does not store."""
        shared = module.restored(stored) if hasattr(module, "restored") else stored
        return BoundNetwork(module, shared, batch_stats, precision)

    @property
    def replicated(self) -> BoundNetwork:
        """The same network with its parameters on all devices, to which they are copied once."""
        if (here := parallel.mesh()) not in self._replicated:
            shared, batch_stats = parallel.replicate((self.shared, self.batch_stats))
            self._replicated[here] = dataclasses.replace(self, shared=shared, batch_stats=batch_stats)
        return self._replicated[here]

    @functools.cached_property
    def _replicated(self) -> dict[Any, BoundNetwork]:
        """`replicated` by the devices that were in use."""
        return {}

    @functools.cached_property
    def inside(self) -> int:
        """`Field.inside` of its fields: -1 for distances, +1 for occupancies."""
        code = jax.ShapeDtypeStruct((self.latent_size,), np.float32)
        return jax.eval_shape(self.fold, code).inside  # traces the network, which takes milliseconds

    def fold(self, code) -> Field:
        """The field of one code [L]."""
        return dataclasses.replace(self.module.fold(self.shared, self.batch_stats, code), precision=self.precision)

    def fields(self, codes) -> Field:
        """The fields of codes [B, L], as one batch."""
        with products.precise(self.precision):
            padded = _fold_all(self, padded_rows(codes))
        per_shape = jax.tree.map(lambda leaf: leaf[: len(codes)], parallel.host(padded.per_shape))
        return dataclasses.replace(padded, per_shape=per_shape)

    def fold_all(self, codes) -> Field:
        """`fields` as a pure function, for use inside jit, in the precision of the caller: codes [B, L] → one batch."""
        per_shape = jax.vmap(lambda code: self.fold(code).per_shape)(codes)
        return dataclasses.replace(self.fold(codes[0]), per_shape=per_shape)


_fold_all = jax.jit(BoundNetwork.fold_all)
