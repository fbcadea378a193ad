"""The graph for TensorBoard's Graphs page, from x and y to the loss."""

from typing import Any

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from linear_lab.models import SupervisedModule


class Forward(nn.Module):
    """Computes ``loss(network(x), y)``."""

    def __init__(self, model: SupervisedModule) -> None:
        super().__init__()
        self.network, self.loss = model.network, model.loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.network(x), y)
        return loss


def trace(model: SupervisedModule, x: Tensor, y: Tensor) -> GraphDef | None:
    """Trace the graph from one row x ``(1, F)`` and its y to the loss; None if the model cannot be traced."""
    if type(model).forward is not SupervisedModule.forward:
        return None
    module, dtype = Forward(model), next(model.parameters()).dtype
    try:
        traced = fx.symbolic_trace(module)
        targets = y.to(model.device, dtype if y.is_floating_point() else None)
        ShapeProp(traced).propagate(x.to(model.device, dtype), targets)
    except Exception:  # a user's network may raise anything when traced; the page then stays empty
        return None
    graph, modules = GraphDef(), dict(module.named_modules())
    for node in traced.graph.nodes:
        inputs = [parent.name for parent in node.all_input_nodes]
        operation = str(node.target)
        if node.op == "call_module":
            for name, parameter in modules[operation].named_parameters():
                inputs.append(f"{node.name}/{name}")
                graph.node.append(_node(inputs[-1], "Parameter", [], tuple(parameter.shape)))
            operation = type(modules[operation]).__name__
        meta = node.meta.get("tensor_meta")
        graph.node.append(_node(node.name, operation, inputs, tuple(meta.shape) if meta else None))
    return graph


def _node(name: str, operation: str, inputs: list[str], shape: tuple[int, ...] | None) -> NodeDef:
    attributes: dict[str, Any] = {}
    if shape is not None:
        sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
        attributes["_output_shapes"] = AttrValue(list=AttrValue.ListValue(shape=[sizes]))
    return NodeDef(name=name, op=operation, input=inputs, attr=attributes)
