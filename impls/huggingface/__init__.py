"""Layers of Hugging Face models: what a configuration says, and a block's weights as ours.

Neither imports transformers: a configuration is plain JSON or an object with attributes, a block is a module whose
parameters are read by name. Importing this package loads no torch.
"""
