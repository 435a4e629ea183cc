"""The network's layers in C++, for CPUs: an extension that is used where it was built and agrees with PyTorch."""
