import numpy as np
import pytest
import torch

from semanticgan.data.stream import Stream, generator


def test_an_epoch_holds_every_image_once_and_epochs_differ():
    order = Stream(50, 0, "images").indices(0, 100)
    assert sorted(order[:50]) == sorted(order[50:]) == list(range(50))
    assert (order[:50] != order[50:]).any()
    assert (order[:50] != np.arange(50)).any()


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 37])
@pytest.mark.parametrize("count", [0, 1, 7, 25])
def test_reading_can_start_at_any_image(start, count):
    whole = Stream(10, 3, "a").indices(0, 80)
    part = Stream(10, 3, "a").indices(start, count)
    assert part.dtype == np.int64
    assert (part == whole[start : start + count]).all()


def test_order_depends_on_seed_and_name():
    orders = [Stream(100, seed, name).indices(0, 100).tolist() for seed, name in ((0, "a"), (1, "a"), (0, "b"), (0, "a"))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_one_image_repeats():
    assert Stream(1, 0, "a").indices(5, 3).tolist() == [0, 0, 0]


def test_no_images_is_a_defect():
    with pytest.raises(ValueError, match="0 images"):
        Stream(0, 0, "a")


def test_generator_is_a_function_of_its_arguments():
    def draw(*args):
        return torch.randn(4, generator=generator(*args))

    assert torch.equal(draw(0, "z", 16), draw(0, "z", 16))
    for other in ((1, "z", 16), (0, "y", 16), (0, "z", 17)):
        assert not torch.equal(draw(0, "z", 16), draw(*other))


def test_generator_seeds_are_the_same_in_every_process():
    assert generator(0, "z", 0).initial_seed() == 4174731904190001220
