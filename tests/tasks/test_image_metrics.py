import pytest
import torch

from interp.errors import InterpError, ShapeError
from interp.shapes.render import render
from interp.shapes.scene import CELLS, COLOURS, Object, Scene
from interp.tasks.image_metrics import ImageMetric, JudgeLogProbability, PixelChange


def pictures(scenes):
    return torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).float() / 255


def test_pixel_change_by_hand():
    reference = torch.zeros(2, 3, 2, 2)
    mask = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]]])
    images = torch.zeros(3, 3, 2, 2)
    images[0, :, 0, 0] = 0.5
    images[1, :, 1, 1] = 1.0
    images[2] = 0.2
    example = torch.tensor([0, 0, 1])
    inside = PixelChange(reference, mask).values(images, example)
    torch.testing.assert_close(inside, torch.tensor([0.5, 0.0, 0.2]))
    everywhere = PixelChange(reference).values(images, example)
    torch.testing.assert_close(everywhere, torch.tensor([(0.25 / 4) ** 0.5, 0.5, 0.2]))
    assert isinstance(PixelChange(reference), ImageMetric)


def test_the_judge_tells_colours_of_renders_and_needs_the_right_cell():
    scenes = [Scene("white", (Object("circle", colour, "large", cell),), 5) for colour in COLOURS for cell in CELLS]
    images, everyone = pictures(scenes), torch.arange(len(scenes))
    cells = [scene.objects[0].cell for scene in scenes]
    own = JudgeLogProbability("colour", [scene.objects[0].colour for scene in scenes], cells)
    assert (own.values(images, everyone) > -0.1).all()
    other = JudgeLogProbability("colour", [COLOURS[COLOURS.index(s.objects[0].colour) - 1] for s in scenes], cells)
    assert (other.values(images, everyone) < -2).all()
    background = JudgeLogProbability("background", ["white"] * len(scenes))
    assert (background.values(images, everyone) > -0.1).all()
    rows = torch.tensor([3, 0])  # each picture is measured for its own base row
    torch.testing.assert_close(own.values(images[rows], rows), own.values(images, everyone)[rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colur", ["red"], ["top left"]), "'colour'"),
        (("colour", ["reed"], ["top left"]), "'red'"),
        (("colour", ["red"], ["middle"]), "no cell 'middle'"),
        (("colour", ["red"]), "a cell per row"),
        (("background", ["white"], ["top left"]), "no cell"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InterpError, match=message):
        JudgeLogProbability(*arguments)
    with pytest.raises(ShapeError, match="2 answers for 1 cells"):
        JudgeLogProbability("colour", ["red", "blue"], ["top left"])
