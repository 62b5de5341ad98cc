"""Models by name. Each is its hyper-parameters with ``build(shape, num_classes) -> nn.Module``.

A user's own `nn.Module` is named by import path (``model.name=package.module:Class``) and built from the section's
other keys; see `ImportedModule`.
"""

from .base import ImportedModule, ModelFactory
from .cnn import CNN
from .gan import GAN
from .lenet import LeNet
from .logistic import Logistic
from .mlp import MLP
from .resnet import ResNet
from .svm import SVM
from .vgg import VGG

MODELS: dict[str, type] = {
    "cnn": CNN,
    "gan": GAN,
    "lenet": LeNet,
    "logistic": Logistic,
    "mlp": MLP,
    "resnet": ResNet,
    "svm": SVM,
    "vgg": VGG,
}

__all__ = ["CNN", "GAN", "MLP", "MODELS", "SVM", "VGG", "ImportedModule", "LeNet", "Logistic", "ModelFactory", "ResNet"]
