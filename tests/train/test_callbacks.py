"""Pictures per second count training alone."""

from types import SimpleNamespace

import pytest

from octzoo.train import callbacks


def test_validation_does_not_count_as_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten batches of 8 in 1 s each, with validation of 100 s in the middle and at the end of the epoch."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock.now)
    logged: dict[str, float] = {}
    trainer = SimpleNamespace(world_size=1, log_every_n_steps=50)
    module = SimpleNamespace(log=lambda name, value, **options: logged.update({name: value}))
    speed = callbacks.ImagesPerSecond()
    speed.on_train_epoch_start(trainer, module)
    for batch in range(10):
        clock.now += 1
        speed.on_train_batch_end(trainer, module, None, (range(8), None), batch)
        if batch in (4, 9):
            speed.on_validation_start(trainer, module)
            clock.now += 100
            speed.on_validation_end(trainer, module)
    speed.on_train_epoch_end(trainer, module)
    assert logged["train/images_per_second"] == pytest.approx(8)
