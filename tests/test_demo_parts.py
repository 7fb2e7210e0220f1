"""What the page of ``dasr demo`` is made of: details, work in turn, networks."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.demo import engine as engine_module
from dasr_ops.demo.engine import Settings, crop
from dasr_ops.demo.regions import Box, busiest_point, detail_around, framed, shown_size
from dasr_ops.demo.tasks import Cancelled, Task, Worker
from dasr_ops.models import Controls, Upscaler
from dasr_ops.models.pictures import Picture

from .demo_tools import difference, noise, predicted, tiny_engine, tiny_model


@pytest.fixture(scope="module")
def engine():
    with tiny_engine("two", "four") as engine:
        yield engine


# --- regions


@pytest.mark.parametrize("center", [(0, 0), (500, 300), (999, 599)])
def test_details_lie_inside(center):
    box = detail_around(center, (1000, 600))
    assert box.size == (200, 150)
    assert box.left >= 0 and box.top >= 0 and box.right <= 1000 and box.bottom <= 600
    assert box.left <= center[0] < box.right and box.top <= center[1] < box.bottom


@pytest.mark.parametrize("size", [(1, 1), (7, 3000), (3000, 7), (200, 150)])
def test_details_of_small_and_narrow_pictures(size):
    box = detail_around((size[0] // 2, size[1] // 2), size)
    assert box.size == (min(size[0], 200), min(size[1], 150))


@pytest.mark.parametrize("size", [(900, 700), (2000, 1500)])
def test_busiest_point_is_where_something_happens(size):
    image = np.full((size[1], size[0]), 90, np.uint8)
    image[500:600, 620:760] = noise(140, 100)[:, :, 0]
    x, y = busiest_point(Image.fromarray(image))
    box = detail_around((x, y), size)
    assert box.left <= 620 and box.right >= 760 and box.top <= 500 and box.bottom >= 600


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_busiest_point_of_tiny_pictures(size):
    x, y = busiest_point(Image.new("RGB", size))
    assert 0 <= x < size[0] and 0 <= y < size[1]


def test_shown_size_is_bounded():
    assert shown_size((600, 400)) == (600, 400)
    assert shown_size((24000, 12000)) == (2400, 1200)
    assert shown_size((120000, 40)) == (2400, 1)


def test_frame_leaves_the_rest_alone():
    image = Image.new("RGB", (400, 300), "red")
    result = np.asarray(framed(image, Box(100, 50, 200, 150), (800, 600)))
    assert (result[80, 30] == (255, 0, 0)).all() and (result[50, 75] == (255, 0, 0)).all()
    assert (result[25:75, 50:100] == 255).all(2).any()


# --- tasks


def test_tasks_run_in_turn_and_can_be_called_off():
    worker, order = Worker(), []
    first, second, third = Task(), Task(), Task()

    def endless(task):
        while True:
            task.report(1, 2)
            time.sleep(0.001)

    worker.start(first, endless)
    worker.start(second, lambda task: order.append("second"))
    worker.start(third, lambda task: order.append("third") or 3)
    assert not first.finished(0.05)
    assert (first.started, second.started, first.done, first.total) == (True, False, 1, 2)
    second.cancel()
    assert second.finished(0) and not first.finished(0)
    first.cancel()
    assert third.finished(10) and third.result() == 3
    assert order == ["third"]
    for task in (first, second):
        with pytest.raises(Cancelled):
            task.result()
    worker.close()


def test_networks_notice_that_they_are_called_off(engine):
    """Between two layers, not only between two tiles."""
    picture = Picture(noise(40, 30))
    task = Task()

    def run(task):
        task.cancel()
        return engine.predict(picture, "two", Task())

    engine.worker.start(task, run)
    assert task.finished(10)
    with pytest.raises(Cancelled):
        task._future.result()


# --- engine


@pytest.mark.parametrize("weights", ["two", "four"])
@pytest.mark.parametrize("deblur", [0.0, 0.5])
def test_result_is_that_of_the_upscaler(engine, weights, deblur):
    picture = Picture(noise(90, 70))
    scale = engine.native_scale(weights)
    v = predicted(engine, picture, weights)
    whole = Upscaler(tiny_model(scale, seed=int(weights == "four")), tile=0, device="cpu")
    expected = whole(picture.color, degradation=Controls(deblur=deblur)(v))
    settings = Settings(weights, scale, deblur=deblur)
    result = engine.enlarge(picture, v, settings, Task())
    assert difference(result.color, expected) <= 1
    box = Box(20, 10, 60, 50)
    detail = engine.enlarge_detail(picture, box, v, settings, Task())
    assert difference(detail.color, crop(result, box.scaled(scale)).color) <= 1


def test_too_large_results_are_refused(engine):
    engine.check_size((10_000, 10_000), Settings("two", 2))
    with pytest.raises(engine_module.TooLargeError, match="20000 × 40000 pixels, 800 million"):
        engine.check_size((10_000, 20_000), Settings("two", 2))


def test_scales_on_offer(engine):
    assert engine.scales("two") == [2]
    assert engine.scales("four") == [2, 3, 4]
