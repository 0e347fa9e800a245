"""The exports: folders and files as the tools write them, and the options of `imgcls model add` that each one needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from imgcls_models import foreign, labels

from . import graphs, references
from .graphs import Form
from .references import IMAGENET_MEAN, IMAGENET_STD, Reference

HALF = (0.5, 0.5, 0.5)
MULTI_LABEL_CLASSES = range(280, 300)


@dataclass(frozen=True)
class Export:
    """A classifier that was written, and how to add it and what to compare it with."""

    name: str
    shape: str
    """What wrote it, for the table."""
    source: Path
    """The argument of `imgcls model add`."""
    onnx: Path
    reference: Reference
    options: Sequence[str] = ()
    layout: str = "NCHW"
    activation: str = "softmax"
    """What turns the graph's output into scores: softmax, sigmoid or none."""
    half: bool = False


def build(folder: Path) -> list[Export]:
    """Writes all exports into the folder."""
    return [make(folder) for make in _MAKERS]


def names_of_classes() -> list[str]:
    """The class names of ImageNet without their ids."""
    return [line.split(" ", 1)[1] for line in labels.imagenet()]


def identifiers() -> list[str]:
    """The WordNet ids of the classes of ImageNet."""
    return [line.split(" ", 1)[0] for line in labels.imagenet()]


def _open_nsfw(folder: Path) -> Export:
    source = foreign.OPEN_NSFW.write(folder / "open-nsfw")
    return Export(
        "open-nsfw",
        "open-nsfw (Caffe, by way of TensorFlow)",
        source,
        source,
        references.open_nsfw,
        ["--labels", str(source.with_name("labels.txt")), *foreign.OPEN_NSFW.options],
        layout="NHWC",
        activation="none",
    )


def _rapidocr(folder: Path) -> Export:
    source = foreign.TEXT_DIRECTION.write(folder / "rapidocr")
    return Export(
        "rapidocr-direction",
        "rapidocr's text direction (PaddlePaddle)",
        source,
        source,
        references.rapidocr_direction,
        ["--labels", str(source.with_name("labels.txt")), *foreign.TEXT_DIRECTION.options],
        activation="none",
    )


def _hugging_face(
    folder: Path, number: int, kind: str, processor: dict[str, Any], reference: Reference, form: Form
) -> Export:
    """A folder as optimum exports it."""
    name = f"lite{number}-hugging-face"
    path = _save(folder / name / "model.onnx", graphs.export(number, form))
    _json(folder / name / "config.json", hugging_face_config(kind, names_of_classes(), graphs.sizes(number)))
    common = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098}
    _json(folder / name / "preprocessor_config.json", common | processor)
    return Export(name, f"Hugging Face, {processor['image_processor_type']}", folder / name, path, reference)


def hugging_face_config(kind: str, names: Sequence[str], size: int) -> dict[str, Any]:
    """`config.json` of an image classifier."""
    return {
        "architectures": [f"{kind}ForImageClassification"],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "image_size": size,
        "label2id": {name: index for index, name in enumerate(names)},
        "model_type": kind.lower(),
        "num_channels": 3,
        "torch_dtype": "float32",
        "transformers_version": "4.57.1",
    }


def _hugging_face_squash(folder: Path) -> Export:
    size = graphs.sizes(0)
    processor = {
        "image_mean": HALF,
        "image_processor_type": "ViTImageProcessor",
        "image_std": HALF,
        "resample": 2,
        "size": {"height": size, "width": size},
    }
    reference = references.hugging_face_squash(size, size, references.BILINEAR, 0.5, 0.5)
    return _hugging_face(
        folder, 0, "ViT", processor, reference, Form(HALF, HALF, input="pixel_values", output="logits")
    )


def _hugging_face_crop(folder: Path) -> Export:
    size = graphs.sizes(1)
    processor = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "image_mean": HALF,
        "image_processor_type": "MobileNetV2ImageProcessor",
        "image_std": HALF,
        "resample": 2,
        "size": {"shortest_edge": size + 32},
    }
    reference = references.hugging_face_shortest_edge(size + 32, size, references.BILINEAR)
    form = Form(HALF, HALF, input="pixel_values", output="logits")
    return _hugging_face(folder, 1, "MobileNetV2", processor, reference, form)


def _hugging_face_crop_pct(folder: Path) -> Export:
    size = graphs.sizes(2)
    processor = {
        "crop_pct": 0.875,
        "image_mean": IMAGENET_MEAN,
        "image_processor_type": "ConvNextImageProcessor",
        "image_std": IMAGENET_STD,
        "resample": 3,
        "size": {"shortest_edge": size},
    }
    reference = references.hugging_face_convnext(size, 0.875, references.BICUBIC)
    form = Form(IMAGENET_MEAN, IMAGENET_STD, input="pixel_values", output="logits")
    return _hugging_face(folder, 2, "ConvNext", processor, reference, form)


def _hugging_face_sigmoid(folder: Path) -> Export:
    """A head with several labels at once: `problem_type` says so, and the graph ends with its logits."""
    name, size = "sigmoid-hugging-face", graphs.sizes(0)
    form = Form(HALF, HALF, input="pixel_values", output="logits", classes=MULTI_LABEL_CLASSES)
    path = _save(folder / name / "model.onnx", graphs.export(0, form))
    names = [names_of_classes()[index] for index in MULTI_LABEL_CLASSES]
    config = hugging_face_config("ViT", names, size) | {"problem_type": "multi_label_classification"}
    _json(folder / name / "config.json", config)
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_processor_type": "ViTImageProcessor",
        "image_std": HALF,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": size, "width": size},
    }
    _json(folder / name / "preprocessor_config.json", processor)
    reference = references.hugging_face_squash(size, size, references.BICUBIC, 0.5, 0.5)
    shape = "Hugging Face, sigmoid (several labels)"
    return Export(name, shape, folder / name, path, reference, activation="sigmoid")


def _timm(
    folder: Path, number: int, crop_pct: float, crop_mode: str, interpolation: str, *, with_labels: bool
) -> Export:
    """A folder with the `config.json` that timm pushes to the hub."""
    name, size = f"lite{number}-timm", graphs.sizes(number)
    form = Form(IMAGENET_MEAN, IMAGENET_STD, input="x", output="logits")
    path = _save(folder / name / "model.onnx", graphs.export(number, form))
    config: dict[str, Any] = {
        "architecture": f"tf_efficientnet_lite{number}",
        "num_classes": 1000,
        "num_features": 1280,
        "pretrained_cfg": {
            "tag": "in1k",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "num_classes": 1000,
            "pool_size": [7, 7],
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    options: list[str] = []
    if with_labels:
        config["label_names"] = identifiers()
        config["label_descriptions"] = dict(zip(identifiers(), names_of_classes(), strict=True))
    else:
        options = ["--labels", str(_labels(folder / "imagenet-labels.txt"))]
    _json(folder / name / "config.json", config)
    filters = {"bicubic": references.BICUBIC, "bilinear": references.BILINEAR}
    reference = references.timm(size, crop_pct, crop_mode, filters[interpolation])
    return Export(name, f"timm, {interpolation}, crop_mode {crop_mode}", folder / name, path, reference, options)


def _torchvision(folder: Path, number: int, preset: str, reference: Reference, *, free_size: bool) -> Export:
    """A file that `torch.onnx.export` wrote of a network of torchvision."""
    name = f"lite{number}-torchvision"
    form = Form(IMAGENET_MEAN, IMAGENET_STD, input="input.1", output="495", free_size=free_size)
    path = _save(folder / f"{name}.onnx", graphs.export(number, form))
    options = ["--preset", preset, "--labels", "imagenet"]
    return Export(name, f"torchvision, --preset {preset}", path, path, reference, options)


def _ultralytics(folder: Path) -> Export:
    """A file as `yolo export format=onnx` writes it for a classifier: everything is in its metadata."""
    name, size = "ultralytics-cls", graphs.sizes(0)
    form = Form((0, 0, 0), (1, 1, 1), input="images", output="output0", activation="Softmax")
    model = graphs.export(0, form)
    metadata = {
        "description": "Ultralytics YOLO11n-cls model trained on imagenet",
        "author": "Ultralytics",
        "date": "2026-11-01T12:00:00.000000",
        "version": "8.3.200",
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "stride": "1",
        "task": "classify",
        "batch": "1",
        "imgsz": str([size, size]),
        "names": str(dict(enumerate(names_of_classes()))),
        "args": str({"batch": 1, "half": False, "dynamic": False, "simplify": True, "opset": None, "nms": False}),
        "channels": "3",
    }
    onnx.helper.set_model_props(model, metadata)
    path = _save(folder / f"{name}.onnx", model)
    return Export(name, "ultralytics -cls, metadata", path, path, references.ultralytics(size), activation="none")


def _teachable_machine(folder: Path) -> Export:
    """The Keras export of Teachable Machine, converted by tf2onnx: channels last, `labels.txt` with numbers."""
    name, size = "teachable-machine", graphs.sizes(0)
    classes = range(5)
    form = Form(
        (1, 1, 1), (1, 1, 1), 1 / 127.5, "sequential_1_input", "sequential_3", "NHWC", "RGB", "Softmax", classes
    )
    path = _save(folder / name / "model.onnx", graphs.export(0, form))
    names = [names_of_classes()[index] for index in classes]
    (folder / name / "labels.txt").write_text("".join(f"{index} {text}\n" for index, text in enumerate(names)))
    options = ["--preset", "teachable-machine"]
    reference = references.teachable_machine(size)
    shape = "Teachable Machine (Keras)"
    return Export(name, shape, folder / name, path, reference, options, layout="NHWC", activation="none")


def _keras_caffe(folder: Path) -> Export:
    """A network of `keras.applications` with the preprocessing of Caffe: BGR, channels last, minus a mean."""
    name, size = "keras-caffe", graphs.sizes(0)
    mean = (103.939, 116.779, 123.68)
    form = Form(mean, (1, 1, 1), 1, "input_1", "predictions", "NHWC", "BGR", "Softmax")
    path = _save(folder / f"{name}.onnx", graphs.export(0, form))
    options = ["--preset", "keras-caffe", "--labels", str(_labels(folder / "imagenet-labels.txt"))]
    reference = references.keras_caffe(size)
    shape = "Keras, --preset keras-caffe"
    return Export(name, shape, path, path, reference, options, layout="NHWC", activation="none")


def _half_with_external_data(folder: Path) -> Export:
    """Input and output in float16, and the weights in a file beside the graph. Everything is given by options."""
    name, size = "float16-external", graphs.sizes(0)
    form = Form(IMAGENET_MEAN, IMAGENET_STD, input="x", output="y", half=True)
    path = folder / name / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    graphs.save_with_external_data(graphs.export(0, form), path)
    options = ["--labels", str(_labels(folder / "imagenet-labels.txt")), "--resize", "shortest-edge", "--size", "232"]
    options += ["--crop", str(size), "--filter", "bilinear", "--activation", "softmax", "--layout", "nchw"]
    options += ["--mean", _listed(IMAGENET_MEAN), "--std", _listed(IMAGENET_STD), "--channels", "rgb"]
    reference = references.torchvision(232, size, references.BILINEAR)
    return Export(name, "float16, external data, options only", path, path, reference, options, half=True)


_MAKERS: tuple[Callable[[Path], Export], ...] = (
    _open_nsfw,
    _rapidocr,
    _hugging_face_squash,
    _hugging_face_crop,
    _hugging_face_crop_pct,
    lambda folder: _timm(folder, 0, 0.875, "center", "bicubic", with_labels=False),
    lambda folder: _timm(folder, 1, 0.882, "center", "bilinear", with_labels=True),
    lambda folder: _timm(folder, 2, 1.0, "squash", "bicubic", with_labels=True),
    lambda folder: _torchvision(
        folder, 0, "torchvision-resnet18", references.torchvision(256, 224, references.BILINEAR), free_size=False
    ),
    lambda folder: _torchvision(
        folder,
        1,
        "torchvision-efficientnet_b1-v2",
        references.torchvision(255, 240, references.BILINEAR),
        free_size=False,
    ),
    lambda folder: _torchvision(
        folder, 2, "torchvision-efficientnet_b2", references.torchvision(288, 288, references.BICUBIC), free_size=True
    ),
    _ultralytics,
    _teachable_machine,
    _keras_caffe,
    _hugging_face_sigmoid,
    _half_with_external_data,
)


def _save(path: Path, model: onnx.ModelProto) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _labels(path: Path) -> Path:
    path.write_text("".join(f"{line}\n" for line in labels.imagenet()), encoding="utf-8")
    return path


def _listed(values: Sequence[float]) -> str:
    return ",".join(str(value) for value in values)
