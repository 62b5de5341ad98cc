"""Models by name. Each is its hyper-parameters with ``build(shape, num_classes) -> nn.Module``.

A user's own `nn.Module` is named by import path (``model.name=package.module:Class``) and built from the section's
other keys; see `ImportedModule`.
"""

from .base import ImportedModule, ModelFactory
from .convolutional import CNN, VGG, LeNet, ResNet
from .dense import MLP, SVM, Logistic
from .gan import GAN

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
