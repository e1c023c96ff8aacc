"""Files of images and other media, decoded."""
