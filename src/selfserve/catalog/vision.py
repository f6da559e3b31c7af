"""What torchvision knows of its classification models, read from the metadata of its default ImageNet-1K weights.

``python -m selfserve.catalog.vision`` writes ``models.csv`` anew.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    import torch

CATALOGUED = (
    "squeezenet1_1", "shufflenet_v2_x1_0", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "efficientnet_b4", "efficientnet_v2_s", "regnet_y_800mf", "regnet_y_3_2gf", "resnet18",
    "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "inception_v3",
    "densenet121", "densenet201", "vgg16", "convnext_tiny", "convnext_small", "convnext_base", "swin_t", "swin_b",
    "vit_b_16",
)  # fmt: skip
"""The models of the catalogue: small and large members of every family, and those of the published studies."""


def import_torchvision() -> ModuleType:
    """Return torchvision, also beside a CPU-only torch that its compiled operators were not made for.

    Where the operators cannot be loaded, two of them are declared (never defined: classification does not use them)
    and the import is tried again. Only then: a complete torchvision aborts when it finds them declared.

    Raises:
        RuntimeError: if torchvision cannot be imported for another reason.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        from torch import library

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            library.define(f"torchvision::{operator}", signature)
        import torchvision
    return torchvision


def build(name: str) -> torch.nn.Module:
    """Return the model with random weights, ready for inference."""
    models = import_torchvision().models
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **options).eval()


def read_models(names: tuple[str, ...] = CATALOGUED) -> pd.DataFrame:
    """Return one row a model: top-1 and top-5 accuracy (percent), parameters, GMACs, file (MB), input side (pixels).

    torchvision's field ``_ops`` counts multiply-accumulates in units of 10^9 at the input size of the weights.
    """
    torchvision = import_torchvision()
    rows = []
    for name in names:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        meta, metrics = weights.meta, weights.meta["_metrics"]["ImageNet-1K"]
        row = {"model": name, "accuracy_pct": metrics["acc@1"], "top5_pct": metrics["acc@5"]}
        row |= {"parameters": meta["num_params"], "gmacs": meta["_ops"], "file_mb": meta["_file_size"]}
        rows.append(row | {"input_px": weights.transforms.keywords["crop_size"], "weights": str(weights)})
    source = f"torchvision {torchvision.__version__.partition('+')[0]} weight metadata"
    return pd.DataFrame(rows).assign(source=source)


if __name__ == "__main__":
    read_models().to_csv(Path(__file__).with_name("models.csv"), index=False, lineterminator="\n")
