"""Captured inference and training: the same bits as without graphs, for several shapes, threads and precisions."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from d3d.s3dg.folding import fold
from d3d.s3dg.graphs import CapturedS3DG, Graphs, capture, capture_gradients
from d3d.s3dg.network import s3dg
from tests.s3dg.reference import randomize

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
WIDTH = 0.25


def network(device="cpu", **kwargs):
    return randomize(s3dg(5, width=WIDTH, **kwargs)).to(device)


def clips(*shape, device="cpu", seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_returns_what_the_network_returns(device):
    folded = fold(network(device))
    fast = fold(network(device), capture=True)
    for shape in [(2, 3, 8, 32, 32), (1, 3, 8, 48, 32), (2, 3, 8, 32, 32)] * 3:
        x = clips(*shape, device=device, seed=sum(shape))
        with torch.no_grad():
            assert torch.equal(fast(x), folded(x))
            assert torch.equal(fast.pooled(x), folded.pooled(x))
            expected = folded.endpoints(x, ["Mixed_4f", "MaxPool_2a_3x3"])
        actual = fast.endpoints(x, ["Mixed_4f", "MaxPool_2a_3x3"])
        assert list(actual) == list(expected)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_are_the_callers_own(device):
    fast = fold(network(device), capture=True)
    first, *others = [fast(clips(2, 3, 8, 32, 32, device=device, seed=seed)) for seed in range(4)]
    kept = first.clone(), others[-1].clone()
    fast(clips(2, 3, 8, 32, 32, device=device, seed=9))
    assert torch.equal(first, kept[0])
    assert torch.equal(others[-1], kept[1])
    assert not torch.equal(first, others[-1])


@pytest.mark.parametrize("device", DEVICES)
def test_inference_mode_may_come_and_go(device):
    fast, x = fold(network(device), capture=True), clips(2, 3, 8, 32, 32, device=device)
    outputs = []
    for _ in range(3):
        with torch.inference_mode():
            outputs.append(fast(x + 0))
        outputs.append(fast(x))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_and_training_are_refused(device):
    fast = fold(network(device), capture=True)
    x = clips(2, 3, 8, 32, 32, device=device).requires_grad_()
    with pytest.raises(RuntimeError, match="a captured network computes no gradients: use the network itself"):
        fast(x)
    with torch.no_grad():
        fast(x)
    assert not fast(x.detach()).requires_grad
    with pytest.raises(ValueError, match="a captured network is for inference"):
        fast.train()
    assert not fast.eval().training


@pytest.mark.parametrize("device", DEVICES)
def test_new_weights_are_used(device):
    fast, other = capture(network(device)), network(device).eval()
    x = clips(2, 3, 8, 32, 32, device=device)
    before = [fast(x) for _ in range(3)]
    with torch.no_grad():
        other.Conv2d_0c_1x1.bias += 1
        expected = other(x)
    fast.load_state_dict({f"model.{name}": value for name, value in other.state_dict().items()})
    assert all(torch.equal(fast(x), expected) for _ in range(3))
    assert not torch.equal(before[-1], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_wrong_clips_are_refused_as_by_the_network(device):
    fast = fold(network(device), capture=True)
    for wrong in (torch.zeros(2, 2, 8, 32, 32), torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8)):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"clips must be floating point \(B, 3, T, H, W\)"):
                fast(wrong.to(device))
    assert fast(clips(2, 3, 8, 32, 32, device=device)).shape == (2, 5)


@pytest.mark.parametrize("device", DEVICES)
def test_captured_gradients_train_like_plain_ones_with_any_optimiser(device, monkeypatch):
    """Batches of two sizes, Adam, clipped gradients, weighted clips; each step from the same weights.

    Norms of few values, and Adam without its eps, would amplify the rounding of a GPU's other kernels.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def trainer():
        model = network(device, dropout=0.0).train()
        for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)]:
            norm.eval()
        return model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-2)

    def loss_of(model):
        return lambda x, y, weights: (F.cross_entropy(model(x).float(), y, reduction="none") * weights).mean()

    def update(model, optimiser):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()

    (captured, captured_optimiser), (plain, plain_optimiser) = trainer(), trainer()
    gradients, start = capture_gradients(captured, loss_of(captured)), [p.detach().clone() for p in plain.parameters()]
    for step in range(7):
        size = 4 - step % 2
        x, labels = clips(size, 3, 8, 32, 32, device=device, seed=step), torch.arange(size, device=device)
        batch = x, labels, torch.rand(size, generator=torch.Generator().manual_seed(step)).to(device)
        plain.load_state_dict(captured.state_dict())
        plain_optimiser.load_state_dict(copy.deepcopy(captured_optimiser.state_dict()))
        plain_optimiser.zero_grad()
        expected = loss_of(plain)(*batch)
        expected.backward()
        update(plain, plain_optimiser)
        loss = gradients(*batch)
        assert not loss.requires_grad
        update(captured, captured_optimiser)
        for a, b in zip([loss, *captured.parameters()], [expected, *plain.parameters()], strict=True):
            assert torch.allclose(a, b, atol=0 if device == "cpu" else 1e-4, rtol=0)
    assert max((a - b).abs().max() for a, b in zip(captured.parameters(), start, strict=True)) > 1e-2


def test_captured_gradients_do_not_depend_on_a_loss_that_is_kept():
    """Its backward pass would tie those of others to its stream (on a GPU no graph could be captured)."""
    model = network("cpu").train()
    batch = clips(2, 3, 8, 32, 32), torch.arange(2)

    def nodes():
        return [get_gradient_edge(p).node for p in model.parameters() if p.requires_grad]

    kept = F.cross_entropy(model(batch[0]), batch[1])
    for node in nodes():
        node.metadata["kept"] = True
    assert all(node.metadata for node in nodes())
    capture_gradients(model, lambda x, labels: F.cross_entropy(model(x), labels))(*batch)
    assert not any(node.metadata for node in nodes())
    kept.backward()


@gpu
def test_captured_gradients_follow_the_networks_state():
    """Frozen parameters, norms in inference mode, weights that moved to other memory."""
    model = network("cuda", dropout=0.0).train()
    x, labels = clips(4, 3, 8, 32, 32, device="cuda"), torch.arange(4, device="cuda")

    def loss(x, labels):
        return F.cross_entropy(model(x), labels)

    def freeze():
        model.features["Mixed_3b"].requires_grad_(False)

    def move():
        for p in model.parameters():
            p.data = p.detach().clone() * 0.9

    gradients = capture_gradients(model, loss)
    for change in (lambda: None, freeze, model.eval, move):
        change()
        gc.collect()
        torch.cuda.empty_cache()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for p in model.parameters():
            p.grad = None
        expected = loss(x, labels)
        expected.backward()
        wanted = [p.grad for p in model.parameters()]
        for _ in range(3):
            model.load_state_dict(state)
            for p in model.parameters():
                p.grad = None
            assert torch.allclose(gradients(x, labels), expected, rtol=1e-3)
            for p, gradient in zip(model.parameters(), wanted, strict=True):
                assert (p.grad is None) == (gradient is None)
                assert gradient is None or p.grad.shape == gradient.shape


@gpu
@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_around_a_call_or_inside_of_a_loss(enabled):
    folded, fast = fold(network("cuda")), fold(network("cuda"), capture=True)
    x = clips(2, 3, 8, 32, 32, device="cuda")
    for on in (enabled, not enabled) * 3:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=on):
            expected = folded(x)
            actual = fast(x)
        assert actual.dtype == expected.dtype == (torch.bfloat16 if on else torch.float32)
        assert torch.equal(actual, expected)
    model = network("cuda", dropout=0.0).train()
    labels = torch.arange(2, device="cuda")

    def loss(x):
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(model(x).float(), labels)

    gradients = capture_gradients(model, loss)
    values = []
    with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
        for _ in range(4):
            values.append(gradients(x).item())
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= 0.01 * p.grad
    # Weights that were cast outside of the graph would never change.
    assert len(set(values)) == len(values)


@gpu
def test_threads_streams_and_few_graphs():
    folded, fast = fold(network("cuda")), fold(network("cuda"), capture=True)
    fast._graphs.max_graphs = 3
    sizes = [1, 2, 3, 4, 5]

    def work(thread):
        stream = torch.cuda.Stream()
        for i in range(30):
            with torch.cuda.stream(stream), torch.no_grad():
                x = clips(sizes[(thread + i // 3) % 5], 3, 8, 32, 32, seed=100 * thread + i).cuda()
                actual, expected = fast(x), folded(x)
                assert torch.equal(actual, expected), (thread, i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(fast._graphs.entries) == 3


@gpu
def test_a_graph_outlives_everything_but_itself():
    """A graph reads the network's memory, which must not be given back while it exists."""
    x = clips(2, 3, 8, 32, 32, device="cuda")
    with torch.no_grad():
        expected = fold(network("cuda"))(x)
    fast = fold(network("cuda"), capture=True)
    for _ in range(3):
        fast(x.clone())
    gc.collect()
    torch.cuda.empty_cache()
    filled = [torch.full((2**22,), float("nan"), device="cuda") for _ in range(32)]
    assert torch.equal(fast(x.clone()), expected)
    del filled, fast
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_network_may_move_to_another_gpu():
    fast = fold(network("cuda:0"), capture=True)
    x = clips(2, 3, 8, 32, 32, device="cuda:0")
    expected = fast(x)
    fast.to("cuda:1")
    for _ in range(3):
        assert torch.allclose(fast(x.to("cuda:1")).cpu(), expected.cpu(), atol=1e-4)


@gpu
def test_a_function_that_cannot_be_captured_fails_and_works_again():
    graphs = Graphs()
    x = torch.ones(3, device="cuda")
    waits = True

    def function(x):
        return [x * x.sum().item() if waits else x * 3]

    device = x.device
    assert graphs.run(function, x, device=device)[0].tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError):
        graphs.run(function, x, device=device)
    waits = False
    assert graphs.run(function, x, device=device)[0].tolist() == [3, 3, 3]
    assert graphs.run(function, x, device=device)[0].tolist() == [3, 3, 3]


def test_hooks_and_attributes_of_the_network_remain_at_hand():
    fast = fold(network(), capture=True)
    assert isinstance(fast, CapturedS3DG)
    assert fast.model.endpoint_info["Mixed_4f"].channels == 208
