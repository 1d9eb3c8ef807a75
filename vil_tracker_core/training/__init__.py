"""Losses, distillation and the training loop."""
