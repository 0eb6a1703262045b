"""Folders and tables of images in, batches of decoded pixels and random views out."""
