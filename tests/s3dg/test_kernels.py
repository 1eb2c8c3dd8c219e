"""S3D-G's kernels against PyTorch in float64, in Triton's interpreter and, if there is one, on a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from d3d.s3dg import ops
from d3d.s3dg.folding import fold
from d3d.s3dg.network import s3dg
from tests.s3dg.reference import randomize, relative_error, smooth_clips

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def norm_in_training(x, bias):
    """Batch norm by the batch's statistics and ReLU."""
    running = [torch.zeros(x.shape[-1], device=x.device), torch.ones(x.shape[-1], device=x.device)]
    num_batches = torch.tensor(3, device=x.device)
    mean, var = ops.batch_stats(x, *([r] for r in running), [num_batches], 0.1)
    assert num_batches == 4
    assert torch.allclose(running[0], 0.1 * mean)
    rows = x.numel() / x.shape[-1]
    assert torch.allclose(running[1], 0.9 + 0.1 * var * rows / (rows - 1))
    return ops.norm_relu(x, [bias], mean, var, 1e-3, True)[0]


def batch_norm_relu(x, bias):
    return F.relu(F.batch_norm(x.flatten(0, -2), None, None, None, bias, True, 0.1, 1e-3)).view(x.shape)


def norm_in_inference(x, bias):
    mean, var = torch.linspace(-1, 1, x.shape[-1], device=x.device), torch.full((x.shape[-1],), 0.7, device=x.device)
    if x.dtype == torch.float64:
        return F.relu((x - mean) / (var + 1e-3).sqrt() + bias)
    return ops.norm_relu(x, [bias], mean, var, 1e-3)[0]


def bias_relu(x, bias):
    return F.relu(x + bias) if x.dtype == torch.float64 else ops.norm_relu(x, [bias])[0]


def gate(a, b, v, w):
    return ops.gate([a, b], [v, w])


def gate_of_four(a, b, c, d, *weights):
    return ops.gate([a, b, c, d], weights)


def joined_norms(x, a, b, c):
    """Three batch norms at once."""
    biases = [a, b, c]
    if x.dtype == torch.float64:
        return batch_norm_relu(x, torch.cat(biases))
    running = [[torch.full_like(bias, value, dtype=torch.float32) for bias in biases] for value in (0.0, 1.0)]
    num_batches = [torch.tensor(n, device=x.device) for n in range(3)]
    mean, var = ops.batch_stats(x, *running, num_batches, 0.1)
    assert [n.item() for n in num_batches] == [1, 2, 3]
    assert torch.allclose(torch.cat(running[0]), 0.1 * mean)
    rows = x.numel() / x.shape[-1]
    assert torch.allclose(torch.cat(running[1]), 0.9 + 0.1 * var * rows / (rows - 1))
    return torch.cat(ops.norm_relu(x, biases, mean, var, 1e-3, True), -1)


class ReluOfItsOutput(torch.autograd.Function):
    """relu(x + bias) whose gradient is computed from the output, as after a convolution with ReLU."""

    @staticmethod
    def forward(ctx, x, bias):
        y = F.relu(x + bias)
        ctx.save_for_backward(y, bias)
        return y

    @staticmethod
    def backward(ctx, dy):
        return ops.kernels.relu_backward(dy.contiguous(), *ctx.saved_tensors)


def relu_of_its_output(x, bias):
    return F.relu(x + bias) if x.dtype == torch.float64 else ReluOfItsOutput.apply(x, bias)


def gate_of_one_position(a, v):
    # The mean's expanded gradient passes as contiguous, although the strides of its rows are 0.
    return ops.gate([a], [v]).mean((1, 2, 3))


def norm_with_bfloat16_statistics(x, bias):
    """Batch statistics are float32 even if the running ones are bfloat16, as after model.bfloat16()."""
    running = [torch.zeros(x.shape[-1], device=x.device, dtype=torch.bfloat16) for _ in range(2)]
    x = x + 2
    mean, var = ops.batch_stats(x, *([r] for r in running), [torch.zeros((), dtype=torch.int64, device=x.device)], 0.1)
    return ops.norm_relu(x, [bias], mean, var, 1e-3, True)[0]


def gated_pool(kernel, stride):
    """A pool of two gated branches, after the ReLU that makes equal maxima."""

    def operation(a, b, v, w):
        a, b = a.relu(), b.relu()
        if a.dtype == torch.float64:
            return ops.max_pool(ops.gate([a, b], [v, w]), kernel, stride)
        return ops.gate_pool([a, b], [v, w], kernel, stride)

    return operation


def pool(kernel, stride):
    # The ReLU makes equal maxima, of which the first receives the gradient.
    return lambda x: ops.max_pool(x.relu(), kernel, stride)


# Operation, its float64 reference, input shapes. 20, 24 and 72 channels are not multiples of a block.
CASES = (
    {
        "norm in training": (norm_in_training, batch_norm_relu, (2, 3, 7, 9, 20), (20,)),
        "two blocks of channels": (norm_in_training, batch_norm_relu, (1, 2, 5, 5, 72), (72,)),
        "norm in inference": (norm_in_inference, norm_in_inference, (2, 3, 7, 9, 20), (20,)),
        "bias": (bias_relu, bias_relu, (2, 3, 7, 9, 24), (24,)),
        "joined norms": (joined_norms, joined_norms, (2, 3, 7, 9, 120), (72,), (16,), (32,)),
        "bias and ReLU from the output": (relu_of_its_output, relu_of_its_output, (2, 3, 7, 9, 72), (72,)),
        "gate of four": (
            gate_of_four,
            gate_of_four,
            *((3, 3, 5, 9, channels) for channels in (16, 72, 24, 130)),
            *((channels, channels) for channels in (16, 72, 24, 130)),
        ),
        "gate": (gate, gate, (2, 3, 5, 9, 20), (2, 3, 5, 9, 7), (20, 20), (7, 7)),
        "gate of one position": (gate_of_one_position, gate_of_one_position, (3, 1, 1, 1, 20), (20, 20)),
        "norm with bfloat16 statistics": (
            norm_with_bfloat16_statistics,
            lambda x, bias: batch_norm_relu(x + 2, bias),
            (2, 3, 7, 9, 20),
            (20,),
        ),
        "taps": (ops.stem_taps, ops.stem_taps, (2, 3, 5, 9, 12)),
        "taps of flow": (ops.stem_taps, ops.stem_taps, (1, 2, 2, 4, 7)),
        "taps of wide clips": (ops.stem_taps, ops.stem_taps, (1, 3, 2, 4, 70)),
    }
    | {
        f"gated pool {kernel} by {stride} of {size}": (
            gated_pool(kernel, stride),
            gated_pool(kernel, stride),
            (2, *size, 20),
            (2, *size, 72),
            (20, 20),
            (72, 72),
        )
        for kernel, stride in [((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2))]
        for size in [(5, 6, 7), (1, 2, 1)]
    }
    | {
        f"pool {kernel} by {stride} of {size}": (pool(kernel, stride), pool(kernel, stride), (2, *size, 20))
        for kernel, stride in [((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 3), (1, 1))]
        for size in [(5, 6, 7), (4, 7, 4), (1, 2, 1)]
    }
)


def with_gradients(operation, inputs) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = operation(*inputs)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output))
    return [output.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("what", ["operations", pytest.param("network", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(what):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.s3dg.interpreted", what]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


@pytest.mark.parametrize(("frames", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_pools_carry_earlier_frames_through_the_loop(frames, stride):
    """Triton 3.6 treats loop variables that start as one tensor as constant: the kernel would lose earlier frames."""
    code = f"""
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from d3d.s3dg.pooling import _max_pool as kernel
types = dict.fromkeys(kernel.arg_names, "i32") | {{f"x{{i}}": "*bf16" for i in range(4)}}
types |= {{"y": "*bf16", "indices": "*u8", "gates": "*fp32"}}
values = dict(KT={frames}, K=3, ST={stride}, S=1, RETURN_INDICES=True, BLOCK_P=32, BLOCK_C=64)
source = ASTSource(fn=kernel, signature=types | dict.fromkeys(values, "constexpr"), constexprs=values)
print(compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"])
"""
    compiled = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    (loop,) = [line for line in compiled.stdout.splitlines() if "scf.while" in line]
    # Maxima and indices of each earlier frame of the window, and the frame's number.
    assert loop.split("->")[0].count(" = ") - 1 == 2 * (frames - 1) + 1, loop


@pytest.mark.slow
def test_kernels_read_and_write_wide_words():
    """Of activations with a multiple of 16 channels, threads move 8 or 16 bytes at once; 2 halve a kernel's speed."""
    code = """
import re
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from d3d.s3dg import gating, kernels, pooling
HALF = {"x", "y", "dx", "dy", "joined", "multiplier"} | {f"{n}{i}" for n in ("x", "y", "dx", "dy") for i in range(4)}
SINGLE = {"partial", "means", "variances", "gates", "addends", "sums"} | {f"bias{i}" for i in range(4)}
ALIGNED = HALF | SINGLE | {"indices", "channels", "total_channels", "c0", "c1", "c2", "c3"}
def check(kernel, **constants):
    names = kernel.arg_names
    types = {n: "*bf16" if n in HALF else "*fp32" if n in SINGLE else "fp32" if n == "eps" else "i32" for n in names}
    types |= {"indices": "*u8"} if "indices" in names else {}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in ALIGNED and n not in constants}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    ptx = compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    narrow = re.findall(r"(?:ld|st)\\.global(?:\\.\\w+)*\\.b(?:8|16)\\b", ptx)
    assert not narrow and ".v4.b32" in ptx, (kernel.fn.__name__, constants, narrow)
blocks = dict(BLOCK_R=kernels.BLOCK_R, BLOCK_C=kernels.BLOCK_C)
for kernel in (kernels._moments, kernels._norm_relu, kernels._relu_sums, kernels._relu_backward):
    check(kernel, **blocks)
check(kernels._norm_relu_backward, TRAINING=True, **blocks)
check(gating._branch_sums, **blocks)
check(gating._scale, BACKWARD=False, **blocks)
check(gating._scale, BACKWARD=True, **blocks)
for KT, K, ST, S in ((1, 3, 1, 2), (3, 3, 2, 2), (2, 2, 2, 2), (3, 3, 1, 1)):
    block = pooling.BLOCK_P if KT == 1 else pooling.BLOCK_P_OVER_TIME
    window = dict(KT=KT, K=K, ST=ST, S=S, BLOCK_P=block, BLOCK_C=pooling.BLOCK_C)
    for gates in ({}, {"gates": None}):
        check(pooling._max_pool, RETURN_INDICES=True, **window, **gates)
        check(pooling._max_pool_backward, **window, **gates, **({"addends": None} if gates else {}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(CASES))
def test_operations_on_a_gpu(name, dtype, monkeypatch):
    operation, reference, *shapes = CASES[name]
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    for larger in (1, 5):
        shapes = [(s[0], s[1], *(larger * n for n in s[2:-1]), s[-1]) if len(s) == 5 else s for s in shapes]
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        actual = with_gradients(operation, [x.cuda() for x in inputs])
        expected = with_gradients(reference, [x.double() for x in inputs])
        limit = 1e-5 if dtype == torch.float32 else 5e-2
        assert all(relative_error(a.double().cpu(), b) < limit for a, b in zip(actual, expected, strict=True))


@gpu
@pytest.mark.parametrize("training", [False, True])
def test_network_on_a_gpu(training, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    clips = smooth_clips(4, 3, 16, 112, 112, dtype=torch.float32)
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        model = randomize(s3dg(5, dropout=0.0)).to(device, dtype).train(training)
        x = clips.to(device, dtype).requires_grad_()
        logits = model(x)
        logits[:, 1].sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append({n: t.double().cpu() for n, t in (grads | {"": logits.detach(), "x": x.grad}).items()})
    assert relative_error(results[1][""], results[0][""]) < 1e-3
    # PyTorch's float32 differs from float64 by 7 % in one gradient in training, where few values share a norm, and by
    # 1.3 % in the clips' gradient in inference, where equal maxima and the edges of ReLU flip.
    worst = max(relative_error(results[1][n], expected) for n, expected in results[0].items())
    assert worst < (0.1 if training else 2e-2)


@gpu
@pytest.mark.parametrize("name", ["Conv2d_1a_7x7", "Mixed_3b", "Mixed_5c"])
def test_training_notices_weights_that_are_not_finite(name):
    """cuDNN's ReLU may turn nan into 0: the branches without it carry nan to the logits."""
    model = s3dg(5).cuda().train()
    stage = model.features[name]
    conv = stage.conv if name == "Conv2d_1a_7x7" else stage.Branch_1[0].conv
    with torch.no_grad():
        conv.weight[0, 0] = torch.nan
    if name != "Conv2d_1a_7x7":
        stage.Branch_0.conv.weight.data[0] = torch.nan
    with torch.autocast("cuda", torch.bfloat16):
        assert not model(torch.rand(2, 3, 16, 64, 64, device="cuda")).isfinite().any()


@gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised by inductor's import
def test_bfloat16_folded_compiled_and_captured_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = randomize(s3dg(5)).cuda().eval()
    clips = smooth_clips(2, 3, 16, 112, 112, dtype=torch.float32).cuda()
    with torch.no_grad():
        expected = model(clips)
        folded = fold(model)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            with monkeypatch.context() as patch:
                patch.setattr(ops, "kernels_support", lambda x: False)
                pytorch_error = relative_error(model(clips).float(), expected)
            logits = {"bfloat16": model(clips), "folded": folded(clips)}
            logits["compiled"] = torch.compile(folded, fullgraph=True)(clips)
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):
                folded(clips)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits["captured"] = folded(clips)
        graph.replay()
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
        logits["hooked"] = model(clips)
    # With these weights bfloat16 is inaccurate in any implementation: PyTorch's kernels are off by 16 %.
    for name, actual in logits.items():
        assert relative_error(actual.float(), expected) < (1e-3 if name == "hooked" else 2 * pytorch_error), name


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    code = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from d3d.s3dg.network import s3dg
from tests.s3dg.reference import randomize, relative_error, smooth_clips
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
clips = smooth_clips(4, 3, 8, 32, 32, dtype=torch.float32)
single, model = (randomize(s3dg(3, width=0.25)).eval() for _ in range(2))
single(clips).square().mean().backward()
parallel = DistributedDataParallel(model)
parallel(clips[2 * rank : 2 * rank + 2]).square().mean().backward()
for (name, a), b in zip(model.named_parameters(), single.parameters(), strict=True):
    assert not a.requires_grad or relative_error(a.grad, b.grad) < 1e-4, name
parallel.train()(clips[2 * rank : 2 * rank + 2]).sum().backward()
dist.destroy_process_group()
"""
    command = [sys.executable, "-W", "error", "-c", code]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]


@pytest.mark.slow
def test_torch_compile_treats_the_kernels_as_operators():
    code = """
import torch
from d3d.s3dg import network, ops
from d3d.s3dg.blocks import Mixed
from d3d.s3dg.network import s3dg
from tests.s3dg.reference import randomize
ops.kernels_support = lambda x: True
Mixed._can_join = network.can_pool = lambda *_: False  # as under torch.compile
results = []
for compiled in (False, True):
    model = randomize(s3dg(3, width=0.25, dropout=0.0))
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    clips = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    run(clips)[:, 1].sum().backward()
    results.append([clips.grad, *(p.grad for p in model.parameters() if p.requires_grad), *model.buffers()])
assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
