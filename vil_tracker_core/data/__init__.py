"""Dataset readers, clip sampling, augmentation and synthetic scenes."""
