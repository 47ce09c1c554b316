"""Leading directions of the Fisher matrix against gradients of autograd, one row at a time."""

import pytest
import torch
from curvature_cases import split, tiny_llama, token_rows, with_adapter
from torch import nn

from vlora.errors import ConfigError, DataError
from vlora.fisher import leading_fisher


def adapter():
    model = with_adapter(tiny_llama())
    return model, {name: p for name, p in model.named_parameters() if "lora_" in name}


def dense(model, parameters, batch) -> torch.Tensor:
    """Sum over rows of the outer product of the gradient of the row's loss under its labels."""
    model.eval()
    total = torch.zeros(1, dtype=torch.float64)
    for row in range(len(batch["input_ids"])):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        logits = model(**{k: v for k, v in one.items() if k != "labels"}).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(
            logits[0], one["labels"][0, 1:], ignore_index=-100, reduction="sum"
        )
        found = torch.autograd.grad(loss, [parameters[name] for name in sorted(parameters)])
        flat = torch.cat([g.flatten() for g in found]).double()
        total = total + torch.outer(flat, flat)
    return total


@pytest.mark.parametrize("size", [2, 5])
def test_directions_are_those_of_the_dense_matrix(size):
    model, parameters = adapter()
    batch = token_rows([4, 6, 5, 3, 6])
    want = dense(model, parameters, batch)
    arguments = {"parameters": parameters, "num_examples": 50, "labels": "given", "progress": False}
    found = leading_fisher(model, split(batch, size), directions=8, **arguments)
    assert found.vectors.shape[1] == 5
    matrix = found.vectors.double() @ torch.diag(found.values) @ found.vectors.double().T
    torch.testing.assert_close(matrix, 10 * want, rtol=1e-3, atol=1e-5 * float(10 * want.abs().max()))


def test_drawn_labels_do_not_depend_on_the_batches_and_leave_the_model_as_it_was():
    model, parameters = adapter()
    batch = token_rows([4, 6, 5, 3])
    model.train()
    arguments = {"parameters": parameters, "num_examples": 4, "progress": False, "seed": 3}
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    one, two = (leading_fisher(model, given, **arguments) for given in ([batch], halves))
    torch.testing.assert_close(one.values, two.values, rtol=1e-3, atol=0)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in parameters.values())


def test_what_cannot_be_measured_is_refused():
    model, parameters = adapter()
    with pytest.raises(ConfigError, match="linear layers"):
        norm = {"norm": next(p for n, p in model.named_parameters() if "norm" in n)}
        leading_fisher(model, [token_rows([4, 6])], parameters=norm, num_examples=2, progress=False)
    with pytest.raises(ConfigError, match="at least 1"):
        leading_fisher(model, [], parameters=parameters, num_examples=2, directions=0, progress=False)
    with pytest.raises(DataError, match="not all zero"):
        leading_fisher(model, [], parameters=parameters, num_examples=2, progress=False)
