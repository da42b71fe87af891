"""Where the bytes of images come from."""
