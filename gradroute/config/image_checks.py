"""Every range and cross-field check of image data and classifiers that needs neither model nor images."""

from gradroute.config.image_schema import GROUPED, ResNetSizes
from gradroute.config.schema import Config
from gradroute.config.validation import LAYERS, WIDTH, one_of, require, require_number
from gradroute.errors import UserError

FORMATS = ("torchvision", "folder", "strips")
CROP = 64  # pixels


def indivisible(config: Config) -> str | None:
    """What takes a batch as a whole, so that it cannot be taken in parts that add up; None if nothing does."""
    if config.losses.correlation:
        return "losses.correlation"
    sizes = config.model.resnet
    return "batch norm (model.resnet.norm)" if sizes is not None and sizes.norm == "batch" else None


def check_images(config: Config) -> None:
    """Raise UserError at the first value of image data or of a ResNet that does not fit, or that only one has."""
    data, sizes = config.dataset, config.model.resnet
    if reason := indivisible(config):
        right = f"1: {reason} takes a batch as a whole"
        require(config.trainer.accumulate == 1, "trainer.accumulate", config.trainer.accumulate, right)
    one_of("dataset.format", data.format, FORMATS)
    local = data.format == "torchvision" or data.root is not None
    require(local, "dataset.root", data.root, f"the folder that dataset.format={data.format} is about")
    if sizes is None:
        what = "null: only what a ResNet classifies is augmented"
        require(data.augment is None, "dataset.augment", data.augment, what)
        return
    if data.text is not None or config.model.transformer is not None or config.model.hf is not None:
        raise UserError("model.resnet: classifies images; give dataset=fashion_mnist or cifar10, and no language model")
    right = "false with model.resnet.norm=batch: a pass for each group"
    require(not config.trainer.compile or sizes.norm == "group", "trainer.compile", config.trainer.compile, right)
    require(config.model.decoders == 1, "model.decoders", config.model.decoders, "1 of a ResNet")
    check_sizes(sizes)
    if data.augment is not None:
        require_number("dataset.augment.crop", data.augment.crop, 0, CROP, int)


def check_sizes(sizes: ResNetSizes) -> None:
    """Raise UserError for sizes that make no ResNet."""
    blocks = sizes.blocks
    require(1 <= len(blocks) <= 8, "model.resnet.blocks", blocks, "the blocks of 1 to 8 stages")
    for number in blocks:
        require_number("model.resnet.blocks", number, 1, LAYERS, int)
    one_of("model.resnet.norm", sizes.norm, ("group", "batch"))
    require_number("model.resnet.width", sizes.width, GROUPED, WIDTH >> (len(blocks) - 1), int)
    right = f"a multiple of {GROUPED}: halves are of whole channels, and group norm takes {GROUPED} together"
    require(sizes.width % GROUPED == 0, "model.resnet.width", sizes.width, right)
    one_of("model.resnet.split", sizes.split, tuple(f"layer{number + 1}" for number in range(len(blocks))))
