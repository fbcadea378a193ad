"""Data sources, and the order in which their rows are served."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from linear_lab.data import Batches, LinearData, SyntheticData, ToyClasses, ToyData, split
from linear_lab.data.batches import epoch_order

TRAIN = {"x": [1, 2, 3, 4], "y": [2, 4, 6, 8]}


def rows(batches):
    return torch.cat([x for x, _ in batches]).flatten().tolist()


def column(n):
    return torch.arange(float(n)).reshape(n, 1)


def test_order_is_a_function_of_seed_and_epoch_alone():
    x = column(20)
    torch.rand(7)  # random numbers drawn before do not matter
    first = rows(Batches(x, x, 6, seed=3, epoch=lambda: 5))
    torch.rand(11)
    assert rows(Batches(x, x, 6, seed=3, epoch=lambda: 5)) == first
    assert sorted(first) == list(range(20))
    others = [rows(Batches(x, x, 6, seed=s, epoch=lambda e=e: e)) for s, e in [(3, 4), (4, 5), (5, 3)]]
    assert all(other != first for other in others)


def test_x_and_y_stay_together():
    x = column(9)
    for batch_x, batch_y in Batches(x, 2 * x, 4, seed=0):
        assert torch.equal(2 * batch_x, batch_y)


@given(n=st.integers(1, 30), batch=st.integers(1, 35), taken=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_goes_on_where_it_was_left(n, batch, taken, seed):
    x, now = column(n), [4]
    whole = list(Batches(x, x, batch, seed=seed, epoch=lambda: 4))
    left, resumed = (Batches(x, x, batch, seed=seed, epoch=lambda: now[0]) for _ in range(2))
    taken = min(taken, len(left))
    for _ in zip(range(taken), left, strict=False):
        pass
    resumed.load_state_dict(left.state_dict())
    rest = list(resumed)
    assert len(rest) == len(whole) - taken
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, whole[taken:], strict=True))
    now[0] = 5
    assert len(list(resumed)) == len(whole)  # the next epoch is whole again


@given(n=st.integers(1, 40), batch=st.integers(1, 12), processes=st.integers(1, 4), seed=st.none() | st.integers(0, 9))
def test_processes_share_each_global_batch(n, batch, processes, seed):
    x = column(n)
    whole = list(Batches(x, x, batch, seed=seed))
    shares = [list(Batches(x, x, batch, seed=seed, rank=r, world_size=processes)) for r in range(processes)]
    for k, (global_batch, _) in enumerate(whole):
        shared = torch.cat([share[k][0] for share in shares])
        assert sorted(shared.flatten().tolist()) == sorted(global_batch.flatten().tolist())


@given(n=st.integers(1, 60), batch=st.integers(1, 9), start=st.integers(0, 60), processes=st.integers(1, 3))
def test_batches_are_rows_of_the_permutation(n, batch, start, processes):
    x = torch.arange(2.0 * n).reshape(n, 2)
    order = x[epoch_order(1, 0, n)]
    served = Batches(x, -x, batch, seed=1, rank=processes - 1, world_size=processes)
    start = min(start, len(served))
    served.load_state_dict({"taken": start, "epoch": 0})
    for k, (batch_x, batch_y) in enumerate(served, start):
        assert torch.equal(batch_x, order[k * batch : (k + 1) * batch][processes - 1 :: processes])
        assert torch.equal(batch_y, -batch_x)
        assert batch_x.is_contiguous()


@pytest.mark.parametrize(("device", "free", "moved"), [("cuda", 100, True), ("cuda", 64, False), ("cpu", 100, False)])
def test_a_part_that_fits_into_half_of_a_gpu_is_moved_there_once(device, free, moved, monkeypatch):
    data = ToyData(TRAIN, val=TRAIN, batch_size=2)
    data.setup()
    moves = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *target: moves.append(target) or self.clone())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1000))
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device, 0)), current_epoch=0, global_rank=0, world_size=1
    )
    served = data.train_dataloader()  # 32 bytes
    assert (served.x is not data.parts["train"][0]) == moved
    assert data.val_dataloader()["train"].x is served.x
    assert moves == [(torch.device("cuda", 0),)] * 4 * moved  # x and y of both parts
    assert [x.tolist() for x, _ in served] == [x.tolist() for x, _ in Batches(*data.parts["train"], 2, seed=0)]


def test_a_part_that_a_validation_moves_to_a_gpu_can_be_trained_on(monkeypatch):
    data = ToyData(TRAIN)
    data.setup()
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self.clone())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    with torch.inference_mode():  # as Lightning's validation
        (x, y), *_ = data.val_dataloader()["train"]
    assert not x.is_inference()
    assert not y.is_inference()


@given(
    n=st.integers(1, 10_000),
    train=st.integers(1, 10),
    val=st.integers(0, 10),
    test=st.integers(0, 10),
)
def test_split_is_disjoint_and_exhaustive(n, train, val, test):
    total = train + val + test
    fractions = [train / total, val / total, test / total]
    assume(min(fraction for fraction in fractions if fraction) * n > 1.5)  # smaller ones may round to nothing
    parts = split(n, fractions)
    taken = [row for part in parts.values() for row in range(n)[part]]
    assert taken == list(range(n))
    for name, fraction in zip(("train", "val", "test"), fractions, strict=True):
        assert (name in parts) == (fraction > 0)
        assert abs(len(range(n)[parts.get(name, slice(0))]) - fraction * n) <= 1


def test_toy_parts_are_columns():
    data = ToyData(TRAIN, test={"x": [[5]], "y": [[10]]})
    data.setup()
    assert data.parts["train"][0].tolist() == [[1], [2], [3], [4]]
    assert set(data.parts) == {"train", "test"}
    assert (data.in_features, data.out_features) == (1, 1)


def test_synthetic_data_follow_their_formula_and_seed():
    arguments = {"samples": 40, "features": 2, "targets": 3, "weight": [[1, 2], [3, 4], [5, 6]], "bias": [7, 8, 9]}
    exact, noisy, again = (SyntheticData(**arguments, noise=noise, seed=4) for noise in (0, 0.5, 0.5))
    other = SyntheticData(**arguments, noise=0, seed=5)
    for data in (exact, noisy, again, other):
        data.setup()
    x, y = exact.parts["train"]
    expected = x @ torch.tensor([[1.0, 3, 5], [2, 4, 6]]) + torch.tensor([7.0, 8, 9])
    torch.testing.assert_close(y, expected)
    assert torch.equal(noisy.parts["train"][0], x)
    assert torch.equal(noisy.parts["val"][1], again.parts["val"][1])
    assert not torch.equal(other.parts["train"][0], x)
    residual = torch.cat([noisy.parts[p][1] - exact.parts[p][1] for p in ("train", "val", "test")])
    assert 0.4 < residual.std() < 0.6


@given(classes=st.integers(2, 30), seed=st.integers(0, 99))
def test_toy_classes_lie_nearest_to_their_own_centre(classes, seed):
    data = ToyClasses(samples=4 * classes, classes=classes, fractions=[1, 0, 0], seed=seed)
    data.setup()
    x, y = data.raw["train"]
    around = 2 * torch.pi * torch.arange(classes) / classes
    centres = torch.stack([around.cos(), around.sin()], 1).double()
    assert torch.equal((x @ centres.T).argmax(1), y)  # centres of length 1: the nearest has the largest product
    assert (data.out_features, len(set(data.schema.labels))) == (classes, classes)


def test_batches_are_there_without_a_trainer():
    data = ToyData(TRAIN, batch_size=3)
    data.setup()
    assert [len(x) for x, _ in data.train_dataloader()] == [3, 1]


def test_one_number_is_the_parameter_of_all():
    data = SyntheticData(samples=10, features=2, targets=2, noise=0, weight=2, bias=1, fractions=[1, 0, 0])
    data.setup()
    x, y = data.parts["train"]
    torch.testing.assert_close(y, (2 * x.sum(1, keepdim=True) + 1).expand(-1, 2))


def test_synthetic_parameters_are_drawn_where_none_are_given():
    data = SyntheticData(samples=50, features=2, noise=0)
    data.setup()
    x, y = data.parts["train"]
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y)
    assert solution.solution.shape == (3, 1)
    assert (x @ solution.solution[:2] + solution.solution[2] - y).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToyData(TRAIN, batch_size=0), "batch_size must be a whole number of at least 1.*got 0"),
        (lambda: ToyData(TRAIN, batch_size=2.5), "batch_size.*got 2.5"),
        (lambda: ToyData({"x": [1, 2], "y": [1]}), r"train .*x \(2, 1\) and y \(1, 1\)"),
        (lambda: ToyData(TRAIN, val={"x": [[1, 2]], "y": [1]}), r"val needs x \(B, 1\).*x \(1, 2\)"),
        (lambda: ToyData({"x": [], "y": []}), "train"),
        (lambda: ToyData({"x": [[1], [2, 3]], "y": [1, 2]}), r"train.x must be .*rows of equal length"),
        (lambda: ToyData({"x": ["a"], "y": [1]}), "train.x must be a list of numbers.*'a'"),
        (lambda: ToyData({"x": [float("nan")], "y": [1]}), "train.x must be a list of finite numbers"),
        (lambda: SyntheticData(samples=0), "samples must be a whole number of at least 1, got 0"),
        (lambda: SyntheticData(features=-1), "features.*got -1"),
        (lambda: SyntheticData(noise=-0.1), "noise.*got -0.1"),
        (lambda: SyntheticData(features=2, weight=[1, 2, 3]), r"weight has shape \(3, 1\).*\(1, 2\)"),
        (lambda: SyntheticData(fractions=[0.7, 0.2, 0.2]), "fractions.*sum to 1"),
        (lambda: SyntheticData(fractions=[0, 0.5, 0.5]), "with train above 0"),
        (lambda: SyntheticData(samples=3, fractions=[0.9, 0.05, 0.05]), "without a row"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make().setup()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            torch.ones(4, 1),
            torch.arange(4.0),
            r"y \(B, T\) with numbers, or \(B,\) with int64 class labels; .*y \(4,\) of torch.float32",
        ),
        (torch.ones(4), torch.ones(4, 1), r"train needs x \(B, F\).*got x \(4,\)"),
        (torch.ones(4, 1), torch.tensor([0, 1, -1, 0]), "class labels of at least 0, got -1"),
        (
            torch.ones(4, 1),
            torch.tensor([True, False, True, True]),
            r"\(B,\) with int64 class labels; .*y \(4,\) of torch.bool",
        ),
        (torch.tensor([[1.0], [math.nan]]), torch.ones(2, 1), "train has nan in column x, which is not finite"),
        (torch.ones(2, 1), torch.tensor([[1.0], [math.inf]]), "train has inf in column y, which is not finite"),
        (
            torch.tensor([[1e300]], dtype=torch.float64),
            torch.ones(1, 1),
            r"train has 1e\+300 in column x, which is too large for torch.float32",
        ),
    ],
)
def test_wrong_parts_of_ones_own_are_named(x, y, message):
    class Own(LinearData):
        def load(self):
            return {"train": (x, y)}

    with pytest.raises(ValueError, match=message):
        Own().setup()


def test_whole_numbers_in_y_are_numbers():
    class Own(LinearData):
        def load(self):
            return {"train": (torch.arange(4)[:, None], torch.arange(4)[:, None])}

    data = Own()
    data.setup()
    assert data.schema.labels is None
    assert data.parts["train"][1].dtype == torch.float32


def test_a_source_without_a_train_part_is_named():
    class Own(LinearData):
        def load(self):
            return {"val": (torch.ones(1, 1), torch.ones(1, 1))}

    with pytest.raises(ValueError, match="load returned the parts val, but not train"):
        Own().setup()
