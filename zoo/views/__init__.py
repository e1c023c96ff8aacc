"""Views: what a task makes of a batch, on its device and random for each sample."""

from zoo.views.image import (adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, color_jitter, crop_resize, each_view, gaussian_blur, in_turn, luminance, multi_crop, random_blur, random_boxes, random_grayscale, random_resized_crop, random_solarize, resize, simclr_view, solarize, to_float)

__all__ = ["adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "color_jitter", "crop_resize", "each_view", "gaussian_blur", "in_turn", "luminance", "multi_crop", "random_blur", "random_boxes", "random_grayscale", "random_resized_crop", "random_solarize", "resize", "simclr_view", "solarize", "to_float"]
