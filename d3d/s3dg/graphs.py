"""CUDA graphs: all kernels of a network, or of a training step, are launched at once, however slow the host's Python.

    fast = capture(fold(model))                 # or fold(model, capture=True)
    logits = fast(clips)                        # under torch.autocast, if that is how the network shall compute

    gradients = capture_gradients(model, lambda clips, labels: F.cross_entropy(model(clips), labels))
    loss = gradients(clips, labels)             # forward and backward pass; sets .grad of every parameter
    optimiser.step()                            # any optimiser, schedule or clipping of gradients

Each shape of the inputs has its own graph. The first call for a shape runs without one, because libraries choose their
kernels then; the second captures; from then on the graph is replayed. On a CPU the functions run as they are.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from d3d.s3dg import ops
from d3d.s3dg.blocks import Bias
from d3d.s3dg.network import S3DG

# A process can capture one graph at a time.
_CAPTURING = threading.Lock()


@dataclass
class _Entry:
    """What is known of one shape: nothing before the second call, then its graph and the tensors that it uses."""

    graph: torch.cuda.CUDAGraph | None = None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: Sequence[Tensor] = ()


class Graphs:
    """Runs functions of tensors from CUDA graphs, one per function, shape of the inputs and precision.

    All work is done on one stream per device, so calls from several threads do not overlap. The graphs share memory.

    Args:
        max_graphs: The graph that was not used for longest is dropped if there are more.
    """

    def __init__(self, max_graphs: int = 8) -> None:
        self.max_graphs = max_graphs
        self.entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.lock = threading.RLock()

    def clear(self) -> None:
        """Forgets all graphs, for instance because the tensors that they read from have moved."""
        with self.lock:
            self.entries.clear()

    def run(
        self,
        function: Callable[..., Sequence[Tensor]],
        *inputs: Tensor,
        device: torch.device,
        key: Hashable = (),
        dtype: torch.dtype | None = None,
        copy_outputs: bool = True,
    ) -> Sequence[Tensor]:
        """Computes function(*inputs).

        Args:
            function: Has to compute the same for the same `key`. Every other tensor that it reads or writes must stay
                where it is, and alive: a graph reads a network's memory, but does not keep the network. (This is how
                `torch.cuda.make_graphed_callables` of a function fails once its network is gone: its replays read
                memory that others use, or, after `empty_cache`, none.)
            inputs: Tensors on the GPU or in page-locked memory.
            device: The GPU.
            key: What distinguishes the function from others that use these graphs.
            dtype: What floating-point inputs are converted to; None: left as they are.
            copy_outputs: Whether to return copies; the next call overwrites what is not copied.

        Returns:
            The function's outputs.
        """
        key = device, key, dtype, tuple((x.shape, x.dtype) for x in inputs), _precision()
        with self.lock, torch.cuda.device(device):
            stream = self.streams.setdefault(device, torch.cuda.Stream(device))
            caller = torch.cuda.current_stream()
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                outputs = self._run(key, function, inputs, copy_outputs)
            caller.wait_stream(stream)
            for output in outputs:
                output.record_stream(caller)
        return outputs

    def _run(self, key, function, inputs, copy_outputs) -> Sequence[Tensor]:
        device, _, dtype, *_ = key
        dtypes = [dtype if dtype and x.is_floating_point() else x.dtype for x in inputs]
        entry = self.entries.get(key)
        if entry is None:
            outputs = function(*(x.to(device, d, non_blocking=True) for x, d in zip(inputs, dtypes, strict=True)))
            self.entries[key] = _Entry()
            if len(self.entries) > self.max_graphs:
                self.entries.popitem(last=False)
            return outputs
        self.entries.move_to_end(key)
        if entry.graph is None:
            entry.inputs = [torch.empty(x.shape, dtype=d, device=device) for x, d in zip(inputs, dtypes, strict=True)]
            self._capture(entry, function, device)
        for static, x in zip(entry.inputs, inputs, strict=True):
            static.copy_(x, non_blocking=True)
        entry.graph.replay()
        return [x.clone() for x in entry.outputs] if copy_outputs else entry.outputs

    def _capture(self, entry: _Entry, function: Callable[..., Sequence[Tensor]], device: torch.device) -> None:
        shared = [e.graph.pool() for (d, *_), e in self.entries.items() if e.graph is not None and d == device]
        graph, cached_casts = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
        # A graph must cast the weights at every replay: no cast from outside of it may be used, none from it outside.
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        try:
            stream, pool = torch.cuda.current_stream(), shared[0] if shared else None
            with _CAPTURING, torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                entry.outputs = function(*entry.inputs)
        finally:
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(cached_casts)
        entry.graph = graph


def _precision() -> Hashable:
    """The settings, besides the inputs, that decide which kernels are launched."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    return autocast, matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, cudnn.enabled


class CapturedS3DG(nn.Module):
    """An S3D-G for inference that replays CUDA graphs; made by `capture`.

    Its methods compute what the network's do, and may be called from several threads. Hooks of submodules do not run.
    Gradients are refused.

    Attributes:
        model: The network, in inference mode. Changing its weights in place has no effect on graphs that exist.
    """

    def __init__(self, model: S3DG) -> None:
        super().__init__()
        self.model = model.eval()
        self._graphs = Graphs()
        self._copies: dict[torch.dtype, S3DG] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits (B, K) of clips (B, C, T, H, W)."""
        return self._run(x, "logits", lambda model, x: [model(x)])[0]

    def pooled(self, x: Tensor) -> Tensor:
        """Computes what `S3DG.pooled` does."""
        return self._run(x, "pooled", lambda model, x: [model.pooled(x)])[0]

    def endpoints(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Computes what `S3DG.endpoints` does."""
        names = tuple(names)
        values = self._run(x, names, lambda model, x: list(model.endpoints(x, names).values()))
        return dict(zip((name for name in self.model.features if name in names), values, strict=True))

    def train(self, mode: bool = True) -> "CapturedS3DG":
        if mode:
            raise ValueError("a captured network is for inference: train the network that was captured")
        return super().train(False)

    def load_state_dict(self, *args, **kwargs):
        self._forget()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args, **kwargs):
        self._forget()
        return super()._apply(*args, **kwargs)

    def _forget(self) -> None:
        self._graphs.clear()
        self._copies.clear()

    def _run(self, x: Tensor, key: Hashable, function: Callable[[S3DG, Tensor], list[Tensor]]) -> Sequence[Tensor]:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "a captured network computes no gradients: use the network itself, or torch.no_grad() and an input "
                "that does not require them"
            )
        # Tensors made in inference_mode may not be written to outside of it, as a replay does.
        with torch.inference_mode(False), torch.no_grad():
            if not x.is_cuda or not x.is_floating_point() or x.numel() == 0:
                return function(self.model, x)
            dtype = ops.compute_dtype(x)
            return self._graphs.run(lambda x: function(self._in(dtype), x), x, device=x.device, key=key, dtype=dtype)

    def _in(self, dtype: torch.dtype) -> S3DG:
        """The network with weights of convolutions in `dtype`, which autocast would convert at every replay."""
        if self.model.Conv2d_0c_1x1.weight.dtype == dtype:
            return self.model
        if dtype not in self._copies:
            model = copy.deepcopy(self.model)
            for module in model.modules():
                if isinstance(module, nn.Conv3d | Bias):
                    module.to(dtype)
            self._copies[dtype] = model
        return self._copies[dtype]


def capture(model: S3DG) -> CapturedS3DG:
    """Makes a network for inference that replays CUDA graphs instead of launching kernels one by one.

    Args:
        model: The network, on a GPU; usually folded (`d3d.s3dg.fold`). It is set to inference mode.

    Returns:
        A module with the network's methods `forward`, `pooled` and `endpoints`, and the same outputs.
    """
    return CapturedS3DG(model)


class CapturedGradients:
    """Computes a loss and its gradients from CUDA graphs; made by `capture_gradients`."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        self.model, self.loss = model, loss
        self._graphs = Graphs()

    def __call__(self, *batch: Tensor) -> Tensor:
        """Runs the forward and the backward pass.

        Args:
            batch: The arguments of the loss.

        Returns:
            The loss, a scalar without gradient. `.grad` of every parameter is replaced: nothing is accumulated.
        """

        def run(*batch: Tensor) -> list[Tensor]:
            params = [p for p in self.model.parameters() if p.requires_grad]
            for p in params:
                p.grad = None
                _forget_accumulator(p)
            loss = self.loss(*batch)
            loss.backward()
            # A loss may leave some out.
            self._used = [p for p in params if p.grad is not None]
            return [loss.detach(), *(p.grad for p in self._used)]

        if not batch[0].is_cuda:
            return run(*batch)[0]
        key = _state(self.model)
        loss, *gradients = self._graphs.run(run, *batch, device=batch[0].device, key=key, copy_outputs=False)
        for p, gradient in zip(self._used, gradients, strict=True):
            p.grad = gradient
        return loss.clone()


def _state(model: nn.Module) -> Hashable:
    """What a graph of a network's training depends on, besides its inputs: modes, and where the tensors are."""
    # The GPU waits for this, and the loops behind model.parameters() take four times as long.
    modules = [model]
    for module in modules:
        modules.extend(m for m in module._modules.values() if m is not None)
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    return tuple(m.training for m in modules), tuple((t.data_ptr(), t.requires_grad) for t in tensors)


def _forget_accumulator(parameter: nn.Parameter) -> None:
    """Lets the next backward pass accumulate a parameter's gradient on its own stream.

    While an earlier loss is kept, every backward pass accumulates on that one's stream, which no graph can capture.
    Autograd makes a new accumulator after a change of dtype.
    """
    data = parameter.data
    parameter.data = data.new_empty(0, dtype=torch.float32 if data.dtype == torch.float64 else torch.float64)
    parameter.data = data


def capture_gradients(model: nn.Module, loss: Callable[..., Tensor]) -> CapturedGradients:
    """Makes a function that replays the forward and the backward pass of a training step as one CUDA graph.

    Args:
        model: The network whose parameters get gradients.
        loss: Maps the tensors of a batch to the loss, a scalar, and runs the model; under torch.autocast if wanted. It
            may not depend on anything else that changes, nor wait for the GPU (`.item()`, printing).

    Returns:
        A function of the same tensors that returns the loss and sets `.grad`. Its first call for each shape is an
        ordinary step, the second one captures, and all of them are steps of training.
    """
    return CapturedGradients(model, loss)
