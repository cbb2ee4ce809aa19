"""What runs on an NVIDIA GPU: kernels in Triton's language, CUDA graphs, and the runner over them.

Whoever imports a module here imports torch and Triton; nobody does on a machine without a GPU.
"""
