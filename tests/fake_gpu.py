"""A GPU that is not there: what runs "on cuda:0" runs on the meta device, which has shapes and no values, forward and backward.

    with FakeGPU() as gpu:          # "cuda:0" is the meta device, and a tensor there says that it is on cuda:0
        net.to("cuda:0")
        with gpu.strict():          # as in a step that becomes a CUDA graph
            loss = net(x.to("cuda:0")).sum()   # refused: a copy from the host

Two kinds of fault are found. A tensor of the CPU among those of the GPU is refused always. Within ``strict`` so is all that would
stop a graph from being recorded, or be recorded wrongly: reading a value (a host sync), a shape that depends on values, any
operation on the CPU. Outside it, where set-up and evaluation may wait for the device, values may be read: those of small tensors
that follow from what was copied there are right, others are 1 or True.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

CUDA, META, CPU = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
DEVICE, IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__
SMALL = 10_000  # values that are followed
LARGE = 100_000  # values above which fresh weights are zeros: a draw of 40 million takes a second
SIZES = ("nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "histc")
READS = ("_local_scalar_dense", "equal", "is_nonzero")
COPIES = ("_to_copy", "copy_", "copy")


class Refused(Exception):
    """What a GPU could not do, or a CUDA graph not hold."""


class FakeGPU:
    def __init__(self):
        self.is_strict, self.values = False, WeakTensorKeyDictionary()
        self.modes = (_Pretend(self), _Watch(self))

    def __enter__(self) -> "FakeGPU":
        self.swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # as between CPU and GPU, a parameter stays the same object
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *_) -> None:
        for mode in self.modes[::-1]:
            mode.__exit__(None, None, None)
        torch.__future__.set_swap_module_params_on_conversion(self.swapped)

    @contextmanager
    def suspended(self):
        """Out of the way of another mode."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    @contextmanager
    def strict(self):
        self.is_strict = True
        try:
            yield
        finally:
            self.is_strict = False


def _is_cuda(value) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (isinstance(value, str) and value.startswith("cuda"))


class _Pretend(TorchFunctionMode):
    """Python's side: "cuda:0" is "meta" on the way in, and "meta" is cuda:0 on the way out."""

    def __init__(self, gpu: FakeGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if func == DEVICE:
            result = func(*args)
            return CUDA if result == META else result
        if func == IS_CUDA:
            return DEVICE(args[0]) == META
        if func in (torch.randn, torch.rand) and kwargs.get("generator") is not None:
            shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            if torch.Size(shape).numel() > LARGE:
                return torch.zeros(shape)
        if func in (Tensor.uniform_, Tensor.normal_) and args[0].numel() > LARGE and DEVICE(args[0]) == CPU:
            return args[0]
        if func in (Tensor.tolist, Tensor.numpy) and DEVICE(args[0]) == META:
            if self.gpu.is_strict:
                raise Refused(f"{func.__name__} reads values of the device: a host sync")
            return func(args[0].detach().cpu())
        if func in (torch.tensor, torch.as_tensor) and self.gpu.is_strict and _is_cuda(kwargs.get("device")):
            raise Refused(f"{func.__name__} copies from the host: a host sync")
        args = [META if _is_cuda(value) else value for value in args]
        return func(*args, **{key: META if _is_cuda(value) else value for key, value in kwargs.items()})


class _Watch(TorchDispatchMode):
    """Every operation, in the backward pass, too."""

    def __init__(self, gpu: FakeGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        strict, name = self.gpu.is_strict, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours, others = ([t for t in tensors if t.is_meta == there] for there in (True, False))
        arrives = kwargs.get("device") == META
        if not ours and not arrives:
            result = func(*args, **kwargs)
            if strict and (others or (isinstance(result, Tensor) and result.numel())):  # torch.utils.checkpoint makes an empty one
                raise Refused(f"{name} runs on the CPU: once, when the graph is recorded")
            return result
        if name in COPIES and (others or kwargs.get("device") == CPU):
            if strict:
                raise Refused(f"{name} copies between host and device: a host sync")
            return self._copy(func, name, args, kwargs)
        if others:
            indices = name in ("index", "index_put_", "index_put") and args[0].is_meta and not strict
            if not indices and (strict or any(tensor.dim() for tensor in others)):
                raise Refused(f"{name} takes tensors of cuda:0 and of the CPU, of shape {[tuple(t.shape) for t in others]}")
        masked = name in ("index", "index_put_", "index_put", "_unsafe_index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if strict and (name in SIZES or masked):
            raise Refused(f"{name}{' with a mask' if masked else ''} has a shape that depends on values: a host sync")
        if name in READS:
            if strict:
                raise Refused(f"{name} reads a value of the device: a host sync")
            return self._value(args[0])
        if name == "_fused_sgd_":
            parameters, gradients, momenta = args[:3]
            if any(a.shape != b.shape for a, b in zip(parameters, gradients, strict=True)) or len(momenta) not in (0, len(parameters)):
                raise Refused("fused SGD takes gradients of the parameters' shapes")
            return None
        if name in SIZES:
            return self._some(name, args, kwargs)
        if masked:  # as if all were chosen
            indices = []
            for index in args[1]:
                chosen = index is not None and index.dtype in (torch.bool, torch.uint8)
                whole = torch.zeros(index.numel(), dtype=torch.int64, device=META) if chosen else None
                indices += [whole] * index.dim() if chosen else [index]
            args = (args[0], indices, *args[2:])
        if others and name in ("index", "index_put_", "index_put"):
            args = tree_map(lambda leaf: leaf.to(META) if isinstance(leaf, Tensor) and not leaf.is_meta else leaf, args)
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, ours, result)
        return result

    def _follow(self, func, args, kwargs, ours: list[Tensor], results) -> None:
        """Keep the values of a small result whose operands are known."""
        values = self.gpu.values
        if func._schema.is_mutable:
            for tensor in ours:
                values.pop(tensor, None)
        elif isinstance(results, Tensor) and results.numel() <= (SMALL if ours else 1) and all(tensor in values for tensor in ours):
            args, kwargs = tree_map(lambda leaf: values[leaf] if isinstance(leaf, Tensor) and leaf in values else leaf, (args, kwargs))
            values[results] = func(*args, **kwargs | ({"device": CPU} if "device" in kwargs else {}))

    def _value(self, tensor: Tensor):
        known = self.gpu.values.get(tensor)
        if known is not None:
            return known.item()
        return torch.ones((), dtype=tensor.dtype).item()

    def _copy(self, func, name: str, args, kwargs):
        if name == "_to_copy" and args[0].is_meta:
            known = self.gpu.values.get(args[0])
            made = torch.ones(args[0].shape) if known is None else known
            return made.to(kwargs.get("dtype") or args[0].dtype)
        if name == "_to_copy":
            result = func(*args, **kwargs)
            if args[0].dim() < 2 or not args[0].is_floating_point():  # labels and the like
                self.gpu.values[result] = args[0].detach().to(kwargs.get("dtype") or args[0].dtype)
            return result
        if name == "copy_" and not args[0].is_meta:
            return args[0].zero_()
        return args[0]

    def _some(self, name: str, args, kwargs):
        if name == "nonzero":
            return torch.zeros(2, args[0].dim(), dtype=torch.int64, device=META)
        if name == "bincount":
            return torch.zeros(max(2, kwargs.get("minlength") or (args[2] if len(args) > 2 else 0)), dtype=torch.int64, device=META)
        raise NotImplementedError(f"{name} of the fake GPU")


class _AsFake(TorchFunctionMode):
    """Tensors of the meta device are FakeTensors of cuda:0 wherever they enter."""

    def __init__(self, mode: FakeTensorMode):
        super().__init__()
        self.mode, self.known, self.originals = mode, {}, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*tree_map(self._fake, args), **tree_map(self._fake, kwargs or {}))
        return self.originals.get(id(result), result)  # of what changed in place: a module that assigns it keeps its own buffer

    def _fake(self, value):
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        with torch._C.DisableTorchFunction():
            if not value.is_meta:
                return value
            if id(value) not in self.known:
                with no_dispatch():
                    shape = value.detach()
                made = FakeTensor(self.mode, shape, CUDA).requires_grad_(value.requires_grad)
                self.known[id(value)] = (made, value)  # both are kept, so that no number is used twice
                self.originals[id(made)] = value
            return self.known[id(value)][0]


@contextmanager
def fake_cuda_tensors(monkeypatch):
    """In place of a FakeGPU: torch's own FakeTensorMode, on tensors of a fake cuda:0; autocast is as on a GPU.

    It has no backward pass without a GPU: a gradient that a loss asks for is made up.
    """

    def gradient(outputs, inputs, *more, create_graph: bool = False, **options):
        many = not isinstance(inputs, Tensor)
        outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
        results = [(tensor * outputs.sum()).to(tensor.dtype) for tensor in (inputs if many else [inputs])]
        return tuple(results if create_graph else [each.detach() for each in results])

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", gradient)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        with FakeTensorMode() as mode, _AsFake(mode):
            yield
