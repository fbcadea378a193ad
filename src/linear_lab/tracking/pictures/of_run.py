"""The pictures of a run, chosen by its data and model."""

import numpy as np
import torch
from torch import Tensor, nn

from linear_lab.data import LinearData
from linear_lab.data.schema import restore, standardize
from linear_lab.models import SupervisedModule
from linear_lab.terminal import layout
from linear_lab.theory.reference import Reference
from linear_lab.tracking.pictures import classification, loss_surface, regression
from linear_lab.tracking.pictures.canvas import Array, subset


class Pictures:
    """The pictures of a run, in the units of the file, of at most 1,000 rows per part.

    For one feature and one target: the data with the fitted and the least-squares line, and the loss surface with the
    optimizer's path. For more: predicted against true values, and learned against optimal coefficients. For classes:
    the decision regions of two features, else a confusion matrix. Networks other than nn.Linear: predictions only.
    """

    def __init__(self, data: LinearData, model: SupervisedModule, reference: Reference) -> None:
        self.data, self.model = data, model
        schema, linear = data.schema, is_plain(model)
        self.rows = {name: torch.from_numpy(subset(len(x))) for name, (x, _) in data.parts.items() if name != "test"}
        raw = {name: [values[rows].numpy() for values in data.raw[name]] for name, rows in self.rows.items()}
        self.fit = self.surface = self.agreement = self.coefficients = self.regions = self.confusion = None
        if schema.labels and linear and data.in_features == 2:
            x, y = raw["train"]
            self.regions = classification.Regions(x, y, schema.labels, schema.x)
        elif schema.labels:
            self.confusion = classification.Confusion(schema.labels)
        elif linear and data.in_features == data.out_features == 1:
            points = {name: (x[:, 0], y[:, 0]) for name, (x, y) in raw.items()}
            best_line = least_squares_line(reference)
            self.fit = regression.Fit(points, schema.x[0], schema.y[0], best_line)
            if model.learned()["bias"] is not None:
                self.surface = loss_surface.Surface(surface(data, model), best_line)
        else:
            self.agreement = regression.Agreement({name: y for name, (_, y) in raw.items()}, schema.y)
            if linear:
                several = len(schema.y) > 1
                names = [f"{y}: {x}" if several else x for y in schema.y for x in schema.x]
                optimum = reference.optimum
                solution = optimum.solution[: data.in_features].T.reshape(-1).numpy() if optimum else None
                self.coefficients = regression.Coefficients(names, solution, schema.standardized)

    def draw(self, step: int, path: list[list[float]]) -> dict[str, bytes]:
        """Draw the current model and the path of weight and bias so far; return PNG files by name."""
        drawn = {}
        if self.fit or self.regions:
            values = self.data.schema.in_file_units(self.model.learned())
            weight = np.array(values["weight"])
            bias = np.array(values["bias"] or [0.0] * len(weight))
            if self.fit:
                drawn["fit"] = self.fit.draw(step, weight.item(), bias.item())
            if self.regions:
                drawn["decision_regions"] = self.regions.draw(step, weight, bias)
        if self.surface:
            drawn["loss_surface"] = self.surface.draw(step, np.array(path))
        if self.agreement:
            y_hat = {name: restore(self._y_hat(name), *self.data.schema.y_units).numpy() for name in self.rows}
            drawn["predictions"] = self.agreement.draw(step, y_hat)
        if self.coefficients:
            weight = self.model.network.get_parameter("weight").detach().cpu().double().numpy().reshape(-1)
            drawn["coefficients"] = self.coefficients.draw(step, weight)
        if self.confusion:
            true = self.data.parts["train"][1][self.rows["train"]].numpy()
            drawn["confusion"] = self.confusion.draw(step, true, self._y_hat("train").argmax(1).numpy())
        return drawn

    def residuals(self) -> dict[str, Array]:
        """Return the residuals of the training part: ``y_hat - y`` of each target, or ``1 - p[y]`` of classes."""
        y_hat, y = self._y_hat("train"), self.data.parts["train"][1][self.rows["train"]]
        if self.data.schema.labels:
            return {"residuals": 1 - y_hat.softmax(1).gather(1, y[:, None])[:, 0].numpy()}
        residuals, names = ((y_hat - y) * self.data.schema.y_units[1]).numpy(), self.data.schema.y
        if len(names) == 1:
            return {"residuals": residuals[:, 0]}
        return {f"residuals/{name}": residuals[:, column] for column, name in enumerate(names[: layout.SHOWN])}

    @torch.no_grad()
    def _y_hat(self, part: str) -> Tensor:
        x = self.data.parts[part][0][self.rows[part]]
        y_hat: Tensor = self.model(x.to(self.model.device, next(self.model.parameters()).dtype))
        return y_hat.cpu().double()


def least_squares_line(reference: Reference) -> tuple[float, float] | None:
    """Return the optimal weight and bias for one feature and one target; the bias of a model without one is 0."""
    if reference.optimum is None:
        return None
    weight, bias = reference.optimum.weight, reference.optimum.bias
    return weight.item(), 0.0 if bias is None else bias.item()


def is_plain(model: SupervisedModule) -> bool:
    """Tell whether the model is exactly an nn.Linear, with nothing before or after it."""
    return type(model.network) is nn.Linear and type(model).forward is SupervisedModule.forward


def surface(data: LinearData, model: SupervisedModule) -> loss_surface.Loss:
    """Return the loss, in training's units, as a function of weight and bias in the units of the file."""
    units = data.schema.y_units
    rows = torch.from_numpy(subset(len(data.raw["train"][0])))
    x, y = (values[rows] for values in data.raw["train"])
    y = standardize(y, *units)

    def loss_at(weight: Tensor, bias: Tensor) -> Tensor:
        value: Tensor = model.loss(standardize(x * weight + bias, *units), y)
        return value

    def loss(weights: Array, biases: Array) -> Array:
        points = torch.from_numpy(weights), torch.from_numpy(biases)
        try:
            values = torch.vmap(loss_at)(*points)
        except RuntimeError:  # vmap cannot vectorize a loss with control flow on values
            values = torch.stack([loss_at(*point) for point in zip(*points, strict=True)])
        return np.asarray(values.detach())  # a loss may have parameters of its own

    return loss
