"""The Graphs page: from x and y to the loss."""

from typing import Any

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from linear_lab.models import SupervisedModule


class Forward(nn.Module):
    """``loss(network(x), y)``."""

    def __init__(self, model: SupervisedModule) -> None:
        super().__init__()
        self.network, self.loss = model.network, model.loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = self.loss(self.network(x), y)
        return loss


def graph(model: SupervisedModule, x: Tensor, y: Tensor) -> GraphDef | None:
    """Trace the model from a row of x ``(1, F)`` and y to the loss, with the shapes of all that flows.

    Returns:
        the graph; None for a network whose way depends on values, which cannot be traced.
    """
    module = Forward(model)
    if type(model).forward is not SupervisedModule.forward:
        return None
    try:
        traced = fx.symbolic_trace(module)
        dtype = next(model.parameters()).dtype
        ShapeProp(traced).propagate(
            x.to(model.device, dtype), y.to(model.device, dtype if y.is_floating_point() else None)
        )
    except Exception:  # whatever a network of one's own raises: the page stays empty, the run goes on
        return None
    found = GraphDef()
    modules = dict(module.named_modules())
    for node in traced.graph.nodes:
        inputs = [parent.name for parent in node.all_input_nodes]
        operation = str(node.target)
        if node.op == "call_module":
            operation = type(modules[operation]).__name__
            for name, parameter in modules[str(node.target)].named_parameters(recurse=False):
                inputs.append(f"{node.name}/{name}")
                found.node.append(_node(inputs[-1], "Parameter", [], tuple(parameter.shape)))
        meta = node.meta.get("tensor_meta")
        found.node.append(_node(node.name, operation, inputs, tuple(meta.shape) if meta else None))
    return found


def _node(name: str, operation: str, inputs: list[str], shape: tuple[int, ...] | None) -> NodeDef:
    attributes: dict[str, Any] = {}
    if shape is not None:
        sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
        attributes["_output_shapes"] = AttrValue(list=AttrValue.ListValue(shape=[sizes]))
    return NodeDef(name=name, op=operation, input=inputs, attr=attributes)
