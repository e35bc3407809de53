"""The private names of torch that planning needs; no other module of planning uses one.

A forward pass that allocates nothing needs fake tensors, which torch exports from a private module only; they have no data
pointer, so their storages can be told apart only by the C++ object's address.
"""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode


def storage_key(tensor: Tensor) -> int:
    """Return a number that is the same for tensors that share memory, fake ones included."""
    key: int = tensor.untyped_storage()._cdata
    return key
