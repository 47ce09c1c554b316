"""IVON: variational learning with the cost and the interface of an ordinary optimizer.

``step`` is the algorithm as pure functions, ``optimizer`` the drop-in ``torch.optim.Optimizer``,
``defaults`` hyper-parameters for short runs. Import from those modules, or ``from vlora import IVON``.
"""
