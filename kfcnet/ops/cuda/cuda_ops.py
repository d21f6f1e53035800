"""The array primitives on a GPU: which kernel does what, on which grid, into which arrays."""

from kfcnet.ops.cuda.elementwise import Elementwise
from kfcnet.ops.cuda.gram import GramMatrices
from kfcnet.ops.cuda.graphs import Graphs
from kfcnet.ops.cuda.pooled_convolution import PooledConvolutions
from kfcnet.ops.cuda.ranks import DeviceRanks
from kfcnet.ops.cuda.updates import Updates


def is_available():
    """Whether CuPy is installed and sees a GPU."""
    from kfcnet.ops.cuda import runtime

    return runtime.is_available()


class CudaOps(Elementwise, PooledConvolutions, GramMatrices, Updates, Graphs):
    """The primitives over the arrays of a runtime, in float32."""

    name = "cuda"

    def __init__(self, runtime=None, tensor_cores=None, ranks=None):
        """runtime: by default CuPy's. tensor_cores: TF32 products, by default where there are any.
        ranks: the processes that share a mini-batch, each with a GPU of its own.

        Raises DeviceError where there is no GPU or no CuPy, and not one GPU a process.
        """
        ranks = ranks or self.ranks
        if runtime is None:
            from kfcnet.ops.cuda.runtime import CupyRuntime

            runtime = CupyRuntime(ranks)
        super().__init__(runtime, runtime.tensor_cores if tensor_cores is None else tensor_cores)
        if ranks.count > 1:
            runtime.join(ranks)
            self.ranks = DeviceRanks(ranks, runtime)

    def describe(self):
        return self.runtime.describe() | {
            "dtype": self.dtype.name,
            "tensor_cores": self.tensor_cores,
            **self.ranks.describe(),
        }
