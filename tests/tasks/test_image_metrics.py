import pytest
import torch

from interp.errors import InterpError, ShapeError
from interp.shapes.render import render
from interp.shapes.scene import CELLS, COLOURS, Object, Scene
from interp.tasks.image_metrics import (
    ClipScore,
    ImageMetric,
    JudgeLogitDifference,
    JudgeLogProbability,
    JudgeProbability,
    PixelChange,
)


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


def test_probability_and_difference_are_of_the_same_verdict():
    scenes = [Scene("white", (Object("circle", "red", "large", cell),), 5) for cell in CELLS]
    images, everyone = pictures(scenes), torch.arange(4)
    right = JudgeLogProbability("colour", ["red"] * 4, CELLS)
    wrong = JudgeLogProbability("colour", ["blue"] * 4, CELLS)
    probability = JudgeProbability("colour", ["red"] * 4, CELLS)
    torch.testing.assert_close(probability.values(images, everyone), right.values(images, everyone).exp())
    difference = JudgeLogitDifference(right, wrong)
    expected = right.values(images, everyone) - wrong.values(images, everyone)
    torch.testing.assert_close(difference.values(images, everyone), expected)
    names = [metric.name for metric in (right, probability, difference)]
    assert names == ["colour_log_probability", "colour_probability", "colour_logit_difference"]
    assert [metric.unit for metric in (right, probability, difference)] == ["nats", "probability", "nats"]


def test_whether_anything_stands_in_a_cell():
    scenes = [Scene("gray", (Object("ring", "green", "small", cell),), 1) for cell in CELLS]
    images, everyone = pictures(scenes), torch.arange(4)
    own = JudgeProbability("cell", CELLS).values(images, everyone)
    other = JudgeProbability("cell", CELLS[::-1]).values(images, everyone)
    assert (own > 0.95).all() and (other < 0.05).all()


def test_clip_score_by_hand():
    """A tiny random CLIP: the cosine of what its two towers give, row by row."""
    import transformers as tf
    from models.pipelines import pipeline

    tokenizer = pipeline("sd").tokenizer
    torch.manual_seed(0)
    config = tf.CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
        ),
        projection_dim=8,
    )  # fmt: skip
    model = tf.CLIPModel(config).eval()
    process = tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    texts = ["a red circle", "two green stars at left"]
    metric = ClipScore(model, tokenizer, process, texts)
    images = pictures([Scene("white", (Object("circle", "red", "large", cell),), 5) for cell in CELLS[:3]])
    example = torch.tensor([0, 1, 0])
    values = metric.values(images, example)
    assert (
        isinstance(metric, ImageMetric)
        and values.shape == (3,)
        and (metric.name, metric.unit) == ("clip_score", "cosine")
    )
    for row, text in enumerate(example.tolist()):
        one = (images[row].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        with torch.no_grad():
            seen = model.vision_model(process([one], return_tensors="pt").pixel_values).pooler_output
            read = model.text_model(**tokenizer([texts[text]], return_tensors="pt")).pooler_output
            pair = model.visual_projection(seen)[0], model.text_projection(read)[0]
        cosine = (pair[0] @ pair[1]) / (pair[0].norm() * pair[1].norm())
        torch.testing.assert_close(values[row], cosine, rtol=0, atol=1e-5)


def test_a_difference_of_two_factors_is_refused():
    colour = JudgeLogProbability("colour", ["red"], ["top left"])
    with pytest.raises(InterpError, match="means nothing"):
        JudgeLogitDifference(colour, JudgeLogProbability("shape", ["circle"], ["top left"]))
