"""GPT-2 beside the same model with nn.Linear layers."""

from torch import nn


def with_linear_layers(model):
    """The same model with nn.Linear in place of every Conv1D."""
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "Conv1D":
            linear = nn.Linear(layer.nx, layer.nf)
            linear.weight.data.copy_(layer.weight.data.mT)
            linear.bias.data.copy_(layer.bias.data)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
    return model
