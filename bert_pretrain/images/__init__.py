"""Images as batches.

Folders, tables and data sets of images enter (sources, tables). What they have in common is found
out (survey, levels), they are decoded once to uint8 (decoding, cache; the copies on disk: copies)
and divided into training and held-out images (corpus). Batches of pixels and of
random numbers leave (collator), and views made of both on the device (augmentation, views).
"""
