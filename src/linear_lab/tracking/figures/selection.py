"""Which pictures show a run, by its data and model."""

import numpy as np
import torch
from torch import Tensor, nn

from linear_lab.data import LinearData
from linear_lab.data.schema import restore, standardize
from linear_lab.models import SupervisedModule
from linear_lab.terminal import layout
from linear_lab.theory.reference import Reference
from linear_lab.tracking.figures import canvas, classification, loss_surface
from linear_lab.tracking.figures.canvas import Array


class Pictures:
    """The pictures of a run, in the units of the file, of at most 1,000 rows a part.

    One feature and one target: the data with the fitted line beside the least-squares line, and the loss surface over
    weight and bias with the optimizer's path. More of them: predicted against true values, and the coefficients learned
    against the optimal ones. Classes: the decision regions of two features, else a confusion matrix. Of another network
    than nn.Linear only what it predicts is shown.

    Args:
        data: what the model is trained on.
        model: drawn as it is at each call.
        known: what it is held against.
    """

    def __init__(self, data: LinearData, model: SupervisedModule, known: Reference) -> None:
        self.data, self.model = data, model
        schema = data.schema
        self.rows = {
            name: torch.from_numpy(canvas.spread(len(x))) for name, (x, _) in data.parts.items() if name != "test"
        }
        raw = {name: [values[rows].numpy() for values in data.raw[name]] for name, rows in self.rows.items()}
        linear = is_plain(model)
        single = linear and not schema.labels and data.in_features == data.out_features == 1
        self.fit = self.surface = self.agreement = self.coefficients = self.regions = self.confusion = None
        if schema.labels and linear and data.in_features == 2:
            x, y = raw["train"]
            self.regions = classification.Regions(x, y, schema.labels, schema.x)
        elif schema.labels:
            self.confusion = classification.Confusion(schema.labels)
        elif single:
            points = {name: (x[:, 0], y[:, 0]) for name, (x, y) in raw.items()}
            optimal = least_squares_line(known)
            self.fit = canvas.Fit(points, schema.x[0], schema.y[0], optimal)
            if model.learned()["bias"] is not None:
                self.surface = loss_surface.Surface(surface(data, model), optimal)
        else:
            self.agreement = canvas.Agreement({name: y for name, (_, y) in raw.items()}, schema.y)
            if linear:
                several = len(schema.y) > 1
                names = [f"{y}: {x}" if several else x for y in schema.y for x in schema.x]
                best = known.optimum.solution[: data.in_features].T.reshape(-1).numpy() if known.optimum else None
                self.coefficients = canvas.Coefficients(names, best, schema.standardized)

    @property
    def has_path(self) -> bool:
        """Whether the optimizer's path is shown."""
        return self.surface is not None

    def draw(self, step: int, path: list[list[float]]) -> dict[str, bytes]:
        """Draw the model as it is.

        Args:
            step: for the titles.
            path: weight and bias along the way, in the units of the file.

        Returns:
            PNG files by name.
        """
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
            weight = dict(self.model.network.named_parameters())["weight"].detach().cpu().double().numpy().reshape(-1)
            drawn["coefficients"] = self.coefficients.draw(step, weight)
        if self.confusion:
            true = self.data.parts["train"][1][self.rows["train"]].numpy()
            drawn["confusion"] = self.confusion.draw(step, true, self._y_hat("train").argmax(1).numpy())
        return drawn

    def residuals(self) -> dict[str, Array]:
        """Return what is left of the training part: ``y_hat - y`` of a target, or ``1 - p[y]`` of classes."""
        y_hat, y = self._y_hat("train"), self.data.parts["train"][1][self.rows["train"]]
        if self.data.schema.labels:
            return {"residuals": 1 - y_hat.softmax(1).gather(1, y[:, None])[:, 0].numpy()}
        rest = ((y_hat - y) * self.data.schema.y_units[1]).numpy()
        names = self.data.schema.y
        if len(names) == 1:
            return {"residuals": rest[:, 0]}
        return {f"residuals/{name}": rest[:, column] for column, name in enumerate(names[: layout.SHOWN])}

    @torch.no_grad()
    def _y_hat(self, part: str) -> Tensor:
        x = self.data.parts[part][0][self.rows[part]]
        y_hat: Tensor = self.model(x.to(self.model.device, next(self.model.parameters()).dtype))
        return y_hat.cpu().double()


def least_squares_line(known: Reference) -> tuple[float, float] | None:
    """Return the optimal weight and bias of one feature and one target; a model without bias has 0."""
    if known.optimum is None:
        return None
    return known.optimum.weight.item(), 0.0 if known.optimum.bias is None else known.optimum.bias.item()


def is_plain(model: SupervisedModule) -> bool:
    """Tell nn.Linear as it is from networks that compute something else."""
    return type(model.network) is nn.Linear and type(model).forward is SupervisedModule.forward


def surface(data: LinearData, model: SupervisedModule) -> loss_surface.Loss:
    """Make the loss of one feature and one target a function of weight and bias, in the units of the file.

    The loss itself is in the units of training, as everywhere.
    """
    schema = data.schema
    rows = torch.from_numpy(canvas.spread(len(data.raw["train"][0])))
    x, y = (values[rows] for values in data.raw["train"])
    y = standardize(y, *schema.y_units)

    def at(weight: Tensor, bias: Tensor) -> Tensor:
        of_one: Tensor = model.loss(standardize(x * weight + bias, *schema.y_units), y)
        return of_one

    def loss(weights: Array, biases: Array) -> Array:
        points = torch.from_numpy(weights), torch.from_numpy(biases)
        try:
            values = torch.vmap(at)(*points)
        except RuntimeError:  # a loss that looks at its values takes one point after the other
            values = torch.stack([at(*point) for point in zip(*points, strict=True)])
        found: Array = values.detach().numpy()  # a loss may have parameters of its own
        return found

    return loss
