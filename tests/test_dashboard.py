"""What TensorBoard reads."""

from runs import record, scalars


def test_one_event_file_holds_the_losses_of_the_run(finished):
    assert len(list(finished.glob("events.out.tfevents.*"))) == 1
    assert {path.name for path in finished.iterdir() if path.is_dir()} == {".hydra", "checkpoints"}  # no sub-runs
    curves, result = scalars(finished), record(finished)
    assert set(curves) == {"train/loss", "val/loss", "test/loss"}  # no epoch, no hp_metric
    assert [step for step, _ in curves["val/loss"]] == list(range(0, 501, 10))
    assert [step for step, _ in curves["test/loss"]] == [500]
    assert curves["train/loss"][0][1] > 1 > 1e-6 > curves["train/loss"][-1][1]
    assert result["metrics"]["test/loss"] == curves["test/loss"][0][1]
