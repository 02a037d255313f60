"""Classifiers pretrained by others: VGG-16, ResNet-50, AlexNet, Inception."""
