"""Turn prompts into a distillation corpus."""

__version__ = "0.1.0"
