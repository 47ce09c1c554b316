"""8-bit optimizer state: the step, checkpoints, conversions, memory, and how closely h follows float32."""

import copy
import gzip
import json
import zlib

import pytest
import torch
from ivon_problems import make, one_step, same, snapshot, through_disk, weights

from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.codes import decode_dynamic, decode_log, encode_dynamic, encode_log, rounding_phase
from vlora.ivon.defaults import auto_settings
from vlora.ivon.groups import step_settings
from vlora.ivon.low_precision import CODE_KEYS, is_coded, read_state, state_bytes
from vlora.ivon.step import ivon_step

BITS = {"state_bits": 8, "min_8bit_size": 1}


@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
def test_a_step_is_decode_reference_encode(hess_approx):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(30, 20))
    optimizer = IVON([param], lr=0.1, ess=50.0, beta2=0.9, hess_approx=hess_approx, foreach=False, **BITS)
    for number in (1, 2, 3):
        optimizer.zero_grad()
        optimizer.train()
        state = copy.deepcopy(optimizer.state[param])
        (param**3).sum().backward()
        momentum = decode_dynamic(state["momentum_codes"], state["momentum_scale"])
        shift = 1e-4 if hess_approx == "price" else 0.0
        hess = decode_log(state["hess_codes"], state["hess_scale"]) - shift
        product = (param.detach() - state["mean"]) * param.grad if hess_approx == "price" else param.grad**2
        settings = step_settings(optimizer.param_groups[0])
        mean, momentum, hess = ivon_step(
            state["mean"], momentum, hess, param.grad, product, step=number, **settings
        )
        optimizer.step()
        new = optimizer.state[param]
        assert torch.equal(new["mean"], mean) and torch.equal(param.detach(), mean)
        values = hess + shift
        expected = (
            *encode_dynamic(momentum),
            *encode_log(values, rounding_phase(values, number), state["hess_scale"]),
        )
        for key, tensor in zip(CODE_KEYS, expected, strict=False):
            assert torch.equal(new[key], tensor), key


@pytest.mark.parametrize("foreach", [True, False])
def test_draws_use_the_decoded_h(foreach):
    plain, coded = (make(foreach=foreach, **bits) for bits in ({}, BITS))
    for _, optimizer in (plain, coded):
        optimizer.train()
    for p, q in zip(plain[0].parameters(), coded[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.01, atol=1e-3)
        mean, hess = coded[1].state[q]["mean"], read_state(coded[1].state[q], "hess")
        ratio = (plain[1].state[p]["hess"] + 1e-4).sqrt() / (hess + 1e-4).sqrt()
        torch.testing.assert_close(q - mean, (p - mean) * ratio, rtol=1e-3, atol=1e-6)


class TestCheckpoints:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_resumed_run_is_bit_equal(self, dtype):
        settings = {**BITS, "stochastic_rounding": True, "dtype": dtype}
        model, optimizer = make(**settings)
        for step in range(3):
            one_step(model, optimizer, step)
        saved = through_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        resumed, resumed_optimizer = make(seed=99, **settings)
        resumed.load_state_dict(saved["model"])
        resumed_optimizer.load_state_dict(saved["optimizer"])
        for step in range(3, 7):
            one_step(model, optimizer, step)
            one_step(resumed, resumed_optimizer, step)
        assert same(weights(model), weights(resumed))
        for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
            assert optimizer.state[p].keys() == resumed_optimizer.state[q].keys()
            for key, value in optimizer.state[p].items():
                other = resumed_optimizer.state[q][key]
                assert torch.equal(value, other) and value.dtype == other.dtype, key

    @pytest.mark.parametrize("bits", [8, 32])
    def test_a_checkpoint_of_the_other_kind_is_converted(self, bits):
        """The optimizer's own state_bits stays, as the state of a run is a matter of its memory, not of its results."""
        settings = ({}, BITS) if bits == 8 else (BITS, {})
        model, optimizer = make(**settings[0])
        for step in range(3):
            one_step(model, optimizer, step)
        other_model, other = make(seed=5, **settings[1])
        other_model.load_state_dict(model.state_dict())
        other.load_state_dict(through_disk(optimizer.state_dict()))
        assert other.param_groups[0]["state_bits"] == bits
        for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
            assert is_coded(other.state[q]) == (bits == 8)
            assert torch.equal(optimizer.state[p]["mean"], other.state[q]["mean"])
            found, wanted = other.posterior_state(q)["hess"], optimizer.posterior_state(p)["hess"]
            torch.testing.assert_close(found, wanted, rtol=0.03, atol=1e-5)
            momenta = [read_state(o.state[r], "momentum") for o, r in ((other, q), (optimizer, p))]
            torch.testing.assert_close(*momenta, rtol=0.05, atol=float(momenta[0].abs().max()) * 0.02)
        for step in range(3, 6):
            one_step(other_model, other, step)

    def test_deepcopy_goes_on_alike(self):
        model, optimizer = make(**BITS)
        one_step(model, optimizer, 0)
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
        for m, o in ((model, optimizer), (twin, twin_optimizer)):
            one_step(m, o, 1)
        assert same(weights(model), weights(twin))

    def test_a_group_may_change_its_mind(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        optimizer.param_groups[0].update(BITS)
        one_step(model, optimizer, 1)
        assert all(is_coded(state) for state in optimizer.state.values())


class TestWhatIsQuantised:
    def test_small_tensors_and_doubles_stay(self):
        params = [
            torch.nn.Parameter(torch.ones(n, dtype=d))
            for n, d in ((4096, None), (4095, None), (5000, torch.double))
        ]
        optimizer = IVON(params, lr=0.1, ess=10.0, state_bits=8)
        optimizer.train()
        assert [is_coded(optimizer.state[p]) for p in params] == [True, False, False]

    def test_each_group_has_its_own(self):
        params = [torch.nn.Parameter(torch.ones(5000)) for _ in range(2)]
        optimizer = IVON([{"params": params[:1], "state_bits": 8}, {"params": params[1:]}], lr=0.1, ess=10.0)
        optimizer.train()
        assert [is_coded(optimizer.state[p]) for p in params] == [True, False]

    def test_bytes_per_parameter(self):
        sizes = {}
        for bits in (8, 32):
            param = torch.nn.Parameter(torch.zeros(256 * 1024))
            optimizer = IVON([param], lr=0.1, ess=10.0, state_bits=bits)
            optimizer.train()
            param.grad = torch.ones_like(param)
            optimizer.step()
            sizes[bits] = state_bytes(optimizer.state.values()) / param.numel()
        assert sizes[32] == 12.0
        assert sizes[8] == pytest.approx(4 + 1 + 1 + (4 + 8) / 256, abs=1e-4)

    @pytest.mark.parametrize("bits", [4, 16, 0])
    def test_other_numbers_of_bits_are_refused(self, bits):
        with pytest.raises(ConfigError, match=f"state_bits must be 8 or 32, got {bits}"):
            make(state_bits=bits)

    def test_sizes_below_one_are_refused(self):
        with pytest.raises(ConfigError, match="min_8bit_size must be a whole number >= 1, got 0"):
            make(min_8bit_size=0)


@pytest.mark.parametrize("settings", [{"state_bits": 8}, {"stochastic_rounding": True}])
def test_shards_are_refused(settings):
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        shard = distribute_tensor(torch.ones(8, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        optimizer = IVON([torch.nn.Parameter(shard)], lr=0.1, ess=10.0, **settings)
        with pytest.raises(ConfigError, match="work on whole tensors, got a DTensor"):
            optimizer.train()
    finally:
        destroy_process_group()


def test_posterior_state_has_the_decoded_h():
    model, optimizer = make(**BITS)
    one_step(model, optimizer, 0)
    for p in model.parameters():
        found = optimizer.posterior_state(p)
        assert found["hess"].shape == p.shape and found["hess"].dtype == torch.float32
        assert torch.equal(found["hess"], read_state(optimizer.state[p], "hess"))
        assert (found["hess"] > -found["weight_decay"]).all()


def test_non_finite_gradients_leave_codes_untouched():
    model, optimizer = make(skip_nonfinite=True, **BITS)
    one_step(model, optimizer, 0)
    before = snapshot(optimizer)
    optimizer.train()
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert all(torch.equal(v, before[id(p)][k]) for p, s in optimizer.state.items() for k, v in s.items())


def bags_of_words(shared_dir, size=2048):
    """Hashed word counts of real sentences, their labels: word frequencies spread h over decades."""
    with gzip.open(shared_dir / "data/sst2/train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    inputs = torch.zeros(len(rows), size)
    for i, row in enumerate(rows):
        for word in row["text"].split():
            inputs[i, zlib.crc32(word.encode()) % size] += 1
    return inputs, torch.tensor([row["label"] for row in rows])


def spearman(a, b):
    """Rank correlation; equal values, which 8-bit codes have many of, share their mean rank."""
    ranks = []
    for values in (a, b):
        _, place, counts = values.flatten().unique(return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum(0) - (counts - 1) / 2)[place].double())
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


@pytest.mark.shared
@pytest.mark.slow
def test_h_follows_float32_for_2000_steps_on_real_text(shared_dir):
    inputs, labels = bags_of_words(shared_dir)
    steps, batch = 2000, 16
    settings = auto_settings(steps, grad_batch_size=batch, width=384, lr=1e-2).optimizer_kwargs()
    hess, losses = {}, {}
    for bits in (32, 8):
        torch.manual_seed(0)
        model = torch.nn.Linear(inputs.shape[1], 2)
        optimizer = IVON(model.parameters(), state_bits=bits, **settings)
        order = torch.Generator().manual_seed(1)
        losses[bits] = 0.0
        for step in range(steps):
            rows = torch.randint(len(inputs), (batch,), generator=order)
            optimizer.zero_grad()
            optimizer.train()
            loss = torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            losses[bits] += loss.item() / 500 if step >= steps - 500 else 0
        hess[bits] = optimizer.posterior_state(model.weight)["hess"]
    seen = hess[32] > 0  # words of the rows drawn
    assert hess[32][seen].log10().std() > 0.5
    assert spearman(hess[8], hess[32]) >= 0.98
    assert (hess[8] / hess[32])[seen].median().item() == pytest.approx(1.0, abs=0.01)
    assert losses[8] == pytest.approx(losses[32], abs=0.01)
