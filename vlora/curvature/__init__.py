r"""Kronecker factors of the loss curvature at an adapter or a model, for merging: while it trains, or in one pass.

For an adapted linear module :math:`y = W x` and a token :math:`t` of example :math:`i`, let :math:`x_{it}` be
the module's input and :math:`g_{it}` the gradient of the example's loss with respect to its output. The
gradient of :math:`W` is :math:`D_i = \sum_t g_{it} x_{it}^\top`; K-FAC (Martens and Grosse, arXiv:1503.05671)
approximates the curvature of :math:`W` by a Kronecker product of two small matrices. Here they are

.. math::
    G = \sum_i c_i \, D_i^\top D_i, \qquad S = \sum_i c_i \, D_i D_i^\top, \qquad
    c_i = v_i / \sum_t \|g_{it}\|^2 .

Deviations from K-FAC, chosen for merging: the tokens of an example are added up before they are squared, where K-FAC
takes them as independent (:mod:`vlora.curvature.tokens`); :math:`c_i`, taken per module, takes the size of the
gradients away, so that one misfit example cannot dominate; and :math:`v_i`, its vote, is what the adapter changed about
it (:mod:`vlora.curvature.votes`), or 1. With its vote an example counts :math:`\|D_i\|^2 / \sum_t \|g_{it}\|^2`: more
where its tokens pull the same way, and by the squared size of the inputs, as in K-FAC. The gradients are those of the
labels in the data (the empirical Fisher).

Names: ``input_gram`` is :math:`G`, shape [in_features, in_features]; ``output_gram`` is :math:`S`, shape
[out_features, out_features]; ``activation_gram``, on request, is the unweighted
:math:`\sum_i \sum_t x_{it} x_{it}^\top` of the tokens that the loss depends on, which RegMean takes.
"""

from vlora.curvature.layers import adapted_layers, linear_layers
from vlora.curvature.one_pass import collect_curvature
from vlora.curvature.streaming import CurvatureStream, gathering, stream_bytes
from vlora.curvature.votes import Votes

__all__ = [
    "CurvatureStream",
    "Votes",
    "adapted_layers",
    "collect_curvature",
    "gathering",
    "linear_layers",
    "stream_bytes",
]
