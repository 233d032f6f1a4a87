"""core/kernels/clipped_adamw.py beside clip_grad_norm_ and torch.optim.AdamW.

Interpreted on a CPU, and on a GPU also in a CUDA graph.
"""
import pytest
import torch
from triton_interpreter import interpreted

# a part of a chunk, one, and several
EVEN = (20, 64), (4,), (1024,), (1028,), (2, 2), (64, 64)
ODD = (20, 65), (3,), (1024,), (1025,), (1, 1), (64, 64)
STEPS = 8
SKIPPED = 5 # at this step the loss is not finite


def both(device, shapes, betas=(0.9, 0.999)):
    """Returns two equal pairs (parameters, AdamW): two groups each, whose last parameter has no gradient."""
    lists = []
    for _ in range(2):
        g = torch.Generator().manual_seed(1)
        params = [torch.randn(shape, generator=g).to(device).requires_grad_() for shape in (*shapes, (8,))]
        groups = [dict(params=params[::2], weight_decay=0.1, lr=torch.tensor(1e-2, device=device)),
                  dict(params=params[1::2], weight_decay=0.0, lr=torch.tensor(2e-2, device=device))]
        optimizer = torch.optim.AdamW(groups, betas=betas, fused=True, capturable=device == 'cuda')
        lists.append((params, optimizer))
    return lists


def gradients(it, shapes):
    """Returns gradients whose norm is above 1, and clipped, from iteration 3 on."""
    g = torch.Generator().manual_seed(it)
    return [torch.randn(shape, generator=g) * 10.0 ** (it - 4) for shape in shapes]


def compare(device, shapes, one_step, betas=(0.9, 0.999)):
    """Compares one_step(ClippedAdamW, loss, it, norm, bad, bad_it) with PyTorch after each step."""
    from core.kernels.clipped_adamw import ClippedAdamW  # Triton
    (params, optimizer), (torch_params, torch_adamw) = both(device, shapes, betas)
    assert ClippedAdamW.takes(optimizer)
    values, clipped = torch.zeros(5, device=device), ClippedAdamW(optimizer, 1.0)
    _, _, norm, bad, bad_it = values
    clipped_steps = 0
    for it in range(STEPS):
        for p, q, grad in zip(params, torch_params, gradients(it, shapes)):
            if p.grad is None:
                p.grad = torch.empty_like(p)
            p.grad.copy_(grad) # a graph's gradients stay where they are
            q.grad = grad.to(device)
        values.copy_(torch.tensor([float('nan') if it == SKIPPED else 2.0, it, 0.0, 0.0, 0.0]))
        one_step(clipped, *values)
        assert bool(bad) == (it == SKIPPED) and bad_it == it * bad

        torch_norm = torch.nn.utils.clip_grad_norm_(torch_params, 1.0)
        torch_adamw.grad_scale, torch_adamw.found_inf = None, bad
        torch_adamw.step()
        clipped_steps += bool(torch_norm > 1)
        assert torch.isclose(norm, torch_norm, rtol=1e-6, atol=0)
        for p, q in zip(params, torch_params, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=2e-6) # of numbers up to 4: float32's last places
            assert optimizer.state[p].keys() == torch_adamw.state[q].keys()
            for kind, expected in torch_adamw.state[q].items():
                torch.testing.assert_close(optimizer.state[p][kind], expected, rtol=2e-6, atol=1e-9)
    assert 0 < clipped_steps < STEPS
    assert optimizer.state[params[0]]['step'] == STEPS - 1 and not optimizer.state[params[-1]]
    assert clipped.aligned == (shapes == EVEN)
    start, _ = both(device, shapes)[0]
    assert all((p - q).abs().max() > 0.01 for p, q in zip(params[:-1], start))
    assert torch.equal(params[-1], start[-1])


def three_kernels(clipped, loss, it, norm, bad, bad_it):
    clipped.check(loss, it, norm, bad, bad_it)
    clipped.step(norm, bad)


@interpreted
@pytest.mark.parametrize('shapes, betas', [(EVEN, (0.9, 0.999)), (ODD, (0.9, 0.999)), (ODD, (0.0, 0.95))])
def test_interpreted_steps_are_pytorchs(shapes, betas):
    compare('cpu', shapes, three_kernels, betas)


@pytest.mark.gpu
@pytest.mark.parametrize('shapes', [EVEN, ODD])
@pytest.mark.parametrize('captured', [False, True])
def test_steps_are_pytorchs(shapes, captured):
    graphs = []

    def one_step(clipped, *values):
        if not captured or not clipped.optimizer.state:
            return three_kernels(clipped, *values)
        if not graphs:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[0]):
                three_kernels(clipped, *values)
            clipped.locate()
        graphs[0].replay()

    compare('cuda', shapes, one_step)
    assert len(graphs) == captured


@interpreted
@pytest.mark.parametrize('spoil', [
    lambda group, p: setattr(p, 'data', p.data.bfloat16()), lambda group, p: setattr(p, 'data', p.data.t()),
    lambda group, p: group.update(lr=1e-2), lambda group, p: group.update(betas=(0.8, 0.9)),
    lambda group, p: group.update(eps=1e-6), lambda group, p: group.update(amsgrad=True),
    lambda group, p: group.update(maximize=True)])
def test_what_the_kernels_do_not_know_is_left_to_pytorch(spoil):
    from core.kernels.clipped_adamw import ClippedAdamW  # Triton
    (params, optimizer), _ = both('cpu', ODD)
    assert ClippedAdamW.takes(optimizer)
    spoil(optimizer.param_groups[0], params[0])
    assert not ClippedAdamW.takes(optimizer)


@interpreted
def test_gradients_may_lie_anywhere():
    from core.kernels.clipped_adamw import ClippedAdamW  # Triton
    (params, optimizer), _ = both('cpu', EVEN)
    clipped, (loss, it, norm, bad, bad_it) = ClippedAdamW(optimizer, 1.0), torch.zeros(5)
    for aligned in True, False:
        for p, grad in zip(params, gradients(9, EVEN)):
            p.grad = grad if aligned else torch.cat((torch.zeros(1), grad.flatten()))[1:].view_as(grad)
        clipped.check(loss, it, norm, bad, bad_it)
        assert clipped.aligned == aligned
        assert torch.isclose(norm, torch.nn.utils.get_total_norm([p.grad for p in params[:-1]]), rtol=1e-6)


def check_nonfinite(device, chunks):
    """Checks that the first number that is not finite is kept, whatever follows, and nothing changes after it."""
    from core.kernels.clipped_adamw import ClippedAdamW  # Triton
    p = torch.ones(chunks, 1024, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([dict(params=[p], lr=torch.tensor(0.1, device=device))], fused=True)
    clipped, values, after = ClippedAdamW(optimizer, 1.0), torch.zeros(5, device=device), []
    loss, it, norm, bad, bad_it = values
    steps = [(1.0, 2.0), (-float('inf'), 2.0), (1.0, float('nan')), (1.0, 2.0)]
    for n, (loss_value, grad_value) in enumerate(steps):
        p.grad = torch.full_like(p, 2.0)
        p.grad[-1, -1] = grad_value
        loss.fill_(loss_value)
        it.fill_(10 + n)
        three_kernels(clipped, *values)
        step = optimizer.state[p]['step']
        after.append((p[0, 0].item(), step.item(), norm.item(), bad.item(), bad_it.item()))
    whole = 2 * (1024 * chunks) ** 0.5
    assert after[0] == (pytest.approx(0.9, abs=0.002), 1, pytest.approx(whole), 0, 0)
    assert after[1] == after[3] == (after[0][0], 1, pytest.approx(whole), 1, 11)
    assert after[2] == (after[0][0], 1, pytest.approx(float('nan'), nan_ok=True), 1, 11)


@interpreted
def test_what_is_not_finite_ends_it_interpreted():
    check_nonfinite('cpu', 3)


@interpreted
def test_norms_of_more_chunks_than_are_read_at_a_time():
    from core.kernels.clipped_adamw import check_finite_kernel  # Triton
    norms, (loss, it, norm, bad, bad_it) = torch.arange(9000.0), torch.zeros(5)
    check_finite_kernel[1,](norms, len(norms), loss, it, norm, bad, bad_it, 4096)
    assert torch.isclose(norm, norms.double().norm().float(), rtol=1e-6) and not bad


@pytest.mark.gpu
def test_what_is_not_finite_ends_it():
    check_nonfinite('cuda', 5000) # more than check_finite_kernel reads at a time
