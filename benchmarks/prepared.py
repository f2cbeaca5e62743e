"""Small data sets in the form that TensorFlow Datasets prepares, written without TensorFlow."""

import io

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

VERSIONS = {"cifar10": "3.0.2", "imagenet2012": "5.1.0", "cityscapes": "1.0.0"}


def prepare(folder, name, features, splits, config=None):
    """Writes `splits`, lists of examples by name, as array_record files of a data set."""
    with registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            code_path = None  # there are no checksums of downloads beside the code
            VERSION = tfds.core.Version(VERSIONS[name])
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: enumerate(examples) for split, examples in splits.items()}

            def _generate_examples(self):
                """Has to be there, and is not asked: the splits hold their examples."""

    Builder.name = name
    builder = Builder(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def compressed(image, form="PNG", mode=None, **options):
    """An image's file."""
    file = io.BytesIO()
    picture = PIL.Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(file, form, **options)
    return file.getvalue()


def cifar10(folder, counts):
    """`counts` random images a split. Returns the folder of its files, the images and the labels by split."""
    rng = np.random.default_rng(0)
    images = {split: rng.integers(0, 256, (count, 32, 32, 3), np.uint8) for split, count in counts.items()}
    labels = {split: rng.integers(0, 10, count) for split, count in counts.items()}
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    example = lambda image, label: {"id": "train_0", "image": compressed(image), "label": label}
    splits = {split: list(map(example, images[split], labels[split].tolist())) for split in counts}
    return prepare(folder, "cifar10", features, splits), images, labels


def imagenet(folder, pictures):
    """`pictures`, image files, in both splits; the label is the place."""
    features = {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
    }
    examples = [
        {"file_name": f"{label}.JPEG", "image": picture, "label": label} for label, picture in enumerate(pictures)
    ]
    return prepare(folder, "imagenet2012", features, {"train": examples, "validation": examples})


def cityscapes(folder, pairs):
    """`pairs` of images uint8 [1024, 2048, 3] and class numbers uint8 [1024, 2048], in both splits."""
    features = {
        "image_id": tfds.features.Text(),
        "image_left": tfds.features.Image(shape=(1024, 2048, 3), encoding_format="png"),
        "segmentation_label": tfds.features.Image(shape=(1024, 2048, 1), encoding_format="png"),
    }
    examples = [
        {"image_id": str(n), "image_left": compressed(image), "segmentation_label": compressed(label)}
        for n, (image, label) in enumerate(pairs)
    ]
    splits = {"train": examples, "validation": examples}
    return prepare(folder, "cityscapes", features, splits, "semantic_segmentation")
