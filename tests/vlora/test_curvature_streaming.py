"""Curvature gathered while training: against one pass, against its expectation, and within its memory."""

from contextlib import nullcontext

import pytest
import torch
from curvature_cases import assert_same, literal_grams, split, tiny_llama, token_rows, with_adapter
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vlora.curvature import collect_curvature, gathering, stream_bytes
from vlora.curvature.sums import FullSum, LeadingSum
from vlora.errors import ConfigError, DataError
from vlora.grams import read_gram


def model_and_batches(lengths=(7, 4, 6, 7)):
    model = with_adapter(tiny_llama(), lora_dropout=0.0)
    return model, split(token_rows(list(lengths)), 2)


def backward(model, batches, scale=1.0):
    for batch in batches:
        (scale * model(**batch).loss).backward()


def test_exact_sums_equal_one_pass_over_the_same_rows():
    model, batches = model_and_batches()
    want = collect_curvature(model, batches, votes="equal", activations=True, progress=False)
    with gathering(model, draws=None, activations=True, votes="equal") as stream:
        model.train()
        backward(model, batches, scale=2**-10)  # neither the scale of the loss nor accumulation matter
    assert_same(stream.result(), want, rtol=1e-4)
    assert set(stream.visits.values()) == {4}
    assert not any(stream.skipped.values())


def test_a_visit_counts_as_much_as_its_gradient_is_large():
    model, rows = with_adapter(tiny_llama(), lora_dropout=0.0), split(token_rows([7, 3, 6]), 1)
    want = {}
    for row in rows:
        raw, apart = (literal_grams(model, [row], normalise=False, joined=joined) for joined in (True, False))
        for key, gram in raw.items():
            size = apart[key.rpartition(".")[0] + ".output_gram"].trace().sqrt()  # of the tokens' gradients
            want[key] = want.get(key, 0) + size * gram / size.square()
    want = {key: gram * (len(gram) / gram.trace()) for key, gram in want.items()}
    with gathering(model, draws=None) as stream:
        backward(model, rows, scale=2**-10)
    assert_same(stream.result(), want, rtol=1e-4)


def test_a_gradient_scaler_that_changes_its_scale_changes_no_vote():
    model, batches = model_and_batches()
    with gathering(model, draws=None) as stream:
        backward(model, batches)
    with gathering(model, draws=None) as scaled:
        scaled.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for batch in batches:
            scaled.scaler.scale(model(**batch).loss).backward()
            scaled.scaler.update(new_scale=1024.0)
    assert_same(scaled.result(), stream.result(), rtol=1e-4)


def test_random_signs_have_the_exact_sums_as_their_expectation():
    model, batches = model_and_batches()
    want = collect_curvature(model, batches, votes="equal", activations=True, progress=False)
    with gathering(model, draws=3, activations=True, votes="equal") as stream:
        for _ in range(40):
            backward(model, batches)
    got = stream.result()
    errors = [((got[key] - gram).norm() / gram.norm()).item() for key, gram in want.items()]
    # 120 draws an example: the off-diagonal part is off by its share / sqrt(120).
    assert max(errors) < 0.2
    with gathering(model, draws=1, votes="equal") as short:
        backward(model, batches)
    once = short.result()
    assert max(((once[k] - want[k]).norm() / want[k].norm()).item() for k in once) > 0.3


def test_joined_tokens_give_partial_traces_of_the_examples_own_gradients():
    model = with_adapter(tiny_llama(), lora_dropout=0.0)
    rows = split(token_rows([7, 4, 6]), 1)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    seen = {}
    layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach()))
    layer.register_full_backward_hook(lambda _, __, grads: seen.update(g=grads[0]))
    g_want = s_want = 0
    with gathering(model, draws=None, joined=True, votes="equal") as exact:
        for row in rows:
            backward(model, [row])
            own = seen["g"][0].T @ seen["x"][0]  # the gradient of this row's loss in the full weight
            share = 1 / seen["g"].square().sum()
            g_want, s_want = g_want + share * own.T @ own, s_want + share * own @ own.T
    found = exact.result(normalise=False)
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    torch.testing.assert_close(found[f"{stem}.input_gram"], g_want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[f"{stem}.output_gram"], s_want, rtol=1e-4, atol=1e-5)
    with gathering(model, draws=4, joined=True, votes="equal") as drawn:
        for _ in range(60):
            backward(model, rows)
    rough = {key: gram / 60 for key, gram in drawn.result(normalise=False).items()}
    errors = [((rough[key] - gram).norm() / gram.norm()).item() for key, gram in found.items()]
    assert max(errors) < 0.2


def test_an_example_of_one_token_is_exact():
    """G = c |g|^2 x x^T whichever way tokens are taken, S = c |x|^2 g g^T where they are joined."""
    model = get_peft_model(nn.Sequential(nn.Linear(5, 4)), LoraConfig(r=2, target_modules=["0"]))
    data = torch.randn(6, 1, 5, generator=torch.Generator().manual_seed(0))
    grams = []
    for joined in (False, True):
        with gathering(model, joined=joined, draws=1, votes="equal") as stream:
            output = model(data)
            output.square().sum().backward()
        grams.append(stream.result(normalise=False))
    apart, whole = grams
    torch.testing.assert_close(whole["base_model.model.0.input_gram"], apart["base_model.model.0.input_gram"])
    x, g = data[:, 0], 2 * output.detach()[:, 0]
    g = g / g.norm(dim=1, keepdim=True)
    want = torch.einsum("i,io,ip->op", x.square().sum(1), g, g)
    torch.testing.assert_close(whole["base_model.model.0.output_gram"], want)
    torch.testing.assert_close(apart["base_model.model.0.output_gram"], g.T @ g)


def test_training_is_the_same_to_the_bit_with_and_without():
    ends = []
    for watch in (False, True):
        model = with_adapter(tiny_llama())  # with dropout
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        model.train()
        torch.manual_seed(3)
        stream = gathering(model) if watch else None
        if stream is not None:
            stream.__enter__()
        for batch in model_and_batches()[1]:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if stream is not None:
            stream.__exit__(None, None, None)
        ends.append([p.detach().clone() for p in model.parameters()] + [torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_examples_that_overflowed_are_left_out_and_counted():
    model, batches = model_and_batches()
    want = collect_curvature(model, batches[:1], votes="equal", progress=False)
    with gathering(model, draws=None, votes="equal") as stream:
        backward(model, batches[:1])
        backward(model, batches[1:], scale=float("inf"))
    assert set(stream.skipped.values()) == {2}
    assert_same(stream.result(), want, rtol=1e-4)


def test_bfloat16_layers_and_outputs_left_out():
    model, batches = model_and_batches()
    want = collect_curvature(model, batches, votes="equal", progress=False)
    with gathering(model.to(torch.bfloat16), draws=None, outputs=False, votes="equal") as stream:
        backward(model, batches)
    got = stream.result()
    assert {key.rpartition(".")[2] for key in got} == {"input_gram"}
    assert all((got[key] - want[key]).norm() < 0.1 * want[key].norm() for key in got)


@pytest.mark.parametrize("piece", [1, 3, 8, 9, 50])
def test_held_rows_are_all_in_the_sum(piece):
    rows = torch.randint(-4, 5, (101, 64), generator=torch.Generator().manual_seed(piece)).float()
    full = FullSum(64, rows.device)
    for part in rows.split(piece):
        full.add(part)
    assert torch.equal(full.result("g", False)["g"], rows.T @ rows)  # whole numbers: exact in any order


def test_leading_directions_are_exact_when_there_are_no_others():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 6, generator=generator) @ torch.randn(6, 64, generator=generator)
    full, short = FullSum(64, rows.device), LeadingSum(64, 6, rows.device)
    for part in rows.split(7):
        full.add(part)
        short.add(part)
    want = full.result("g", True)["g"]
    found = short.result("g", True)
    assert found["g.vectors"].shape == (64, 6)
    assert found["g.tail"].item() < 1e-5
    torch.testing.assert_close(read_gram(found, "g"), want, rtol=1e-3, atol=1e-3)


def test_leading_directions_keep_the_trace_and_the_largest_eigenvalues():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2000, 80, generator=generator) * torch.arange(1, 81).float().pow(-1.0)
    full, short = FullSum(80, rows.device), LeadingSum(80, 10, rows.device)
    for part in rows.split(11):
        full.add(part)
        short.add(part)
    want, got = full.result("g", True)["g"], short.result("g", True)
    gram = read_gram(got, "g")
    assert gram.trace().item() == pytest.approx(80, rel=1e-5)
    top = torch.linalg.eigvalsh(want).flip(0)[:10]
    torch.testing.assert_close(got["g.values"], top, rtol=0.05, atol=0)
    assert (gram - want).norm() < 0.05 * want.norm()


def test_random_signs_keep_the_work_of_a_step_below_a_tenth_more():
    """Operations of all matrix products of a forward and backward pass, counted by torch: no clock."""
    model = with_adapter(tiny_llama(hidden_size=32, intermediate_size=64))
    batch = token_rows([64] * 4)

    def flops(block):
        in_place = {
            torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]
        }  # torch knows addmm only
        with block, FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            for _ in range(8):  # rows held back are summed in the next step
                model(**batch).loss.backward()
        return counter.get_total_flops()

    plain = flops(nullcontext())
    assert plain < flops(gathering(model, draws=2)) < 1.1 * plain
    assert flops(gathering(model, draws=None)) > 1.2 * plain


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation inside makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.entries = max(
            [self.entries, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))]
        )
        return out


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4096, 4096, bias=False)

    def forward(self, x):
        return self.proj(x).square().mean()


def test_a_module_of_width_4096_is_gathered_without_any_square_matrix():
    model = get_peft_model(Wide(), LoraConfig(r=1, target_modules=["proj"]))
    live, stored = stream_bytes(model, rank=8)
    assert live == 2 * 4 * 4 * 8 * 4096
    assert stored == 2 * 4 * (8 * 4096 + 9)
    assert stream_bytes(model) == (2 * 4 * (4096**2 + 4096 * 512), 2 * 4 * 4096**2)
    with gathering(model, rank=8) as stream:
        assert sum(s.buffer.nbytes for s in stream.sums.values()) == live
        for seed in range(3):
            loss = model(torch.randn(8, 5, 4096, generator=torch.Generator().manual_seed(seed)))
            gradient, inputs = torch.ones(8, 5, 4096), torch.ones(8, 5, 4096)
            loss.backward()
        with Largest() as largest:
            stream._add("base_model.model.proj", inputs, gradient)
            found = stream.result()
    assert 0 < largest.entries <= 8 * 5 * 4096
    assert sum(t.nbytes for t in found.values()) == stored
    assert stream.visits == {"base_model.model.proj": 32}


def test_bad_input_is_refused():
    model, _ = model_and_batches()
    with (
        pytest.raises(ConfigError, match="draws must be at least 1 or None, got 0"),
        gathering(model, draws=0),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="rank must be at least 1 or None, got -1"),
        gathering(model, rank=-1),
    ):
        pass
    with gathering(model) as stream:
        pass
    with pytest.raises(DataError, match="no gradient reached an adapted layer"):
        stream.result()


def gather_on_this_rank(rank_of_sums):
    model, batches = model_and_batches()
    with gathering(model, draws=None, rank=rank_of_sums) as stream:
        backward(model, batches[torch.distributed.get_rank() :][:1])
    return stream.result()


@pytest.mark.parametrize("rank", [None, 2])
def test_two_processes_together_see_what_one_would(two_ranks, rank):
    model, batches = model_and_batches()
    with gathering(model, draws=None, rank=rank) as stream:
        backward(model, batches)
    want = stream.result()
    for got in two_ranks(gather_on_this_rank, rank):
        assert got.keys() == want.keys()
        if rank is None:
            assert_same(got, want, rtol=1e-4)
        for key in [k.removesuffix(".vectors") for k in want if k.endswith(".vectors")]:
            # which of several like directions are kept depends on the order of the rows, their weight does not
            kept, alone = (found[f"{key}.values"].sum().item() for found in (got, want))
            assert kept == pytest.approx(alone, rel=0.15)
            assert read_gram(got, key).trace().item() == pytest.approx(len(got[f"{key}.vectors"]), rel=1e-5)
