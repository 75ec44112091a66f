"""Reference models that no library ships: decode heads for semantic segmentation, pre-activation ResNets for CIFAR.

Our own code, in the layouts published by mmsegmentation. Every head is a module whose forward takes the levels of a
backbone, a list of ``(N, C_i, H_i, W_i)``, finest first, and returns logits ``(N, num_classes, H, W)``.
"""
