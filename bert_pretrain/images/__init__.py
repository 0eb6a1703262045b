"""Images as batches.

Folders, tables and data sets of images enter (sources, tables). They are decoded once to uint8
(decoding, cache) and divided into training and held-out images (corpus). Batches of pixels and of
random numbers leave (collator), and views made of both on the device (augmentation, views).
"""
