"""Models by name. Each is its hyper-parameters with ``build(shape, num_classes) -> nn.Module``.

A user's own `nn.Module` is named by import path (``model.name=package.module:Class``) and built from the section's
other keys; see `ImportedModule`.
"""

from .base import ImportedModule, ModelFactory
from .convolutional import CNN, VGG, LeNet, ResNet
from .dense import MLP, SVM, Logistic
from .gan import GAN
from .huggingface import HuggingFace
from .libraries import Timm, Torchvision
from .sequence import GPT, LSTM, TextMean

MODELS: dict[str, type] = {
    "cnn": CNN,
    "gan": GAN,
    "gpt": GPT,
    "lenet": LeNet,
    "logistic": Logistic,
    "lstm": LSTM,
    "mlp": MLP,
    "resnet": ResNet,
    "svm": SVM,
    "text_mean": TextMean,
    "vgg": VGG,
    "hf:": HuggingFace,
    "timm:": Timm,
    "torchvision:": Torchvision,
}

__all__ = [
    "CNN",
    "GAN",
    "GPT",
    "LSTM",
    "MLP",
    "MODELS",
    "SVM",
    "VGG",
    "HuggingFace",
    "ImportedModule",
    "LeNet",
    "Logistic",
    "ModelFactory",
    "ResNet",
    "TextMean",
    "Timm",
    "Torchvision",
]
