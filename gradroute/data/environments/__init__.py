"""Data sets of images, which are held in memory."""
