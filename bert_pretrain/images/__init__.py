"""Images as batches.

Folders, tables, tar archives and data sets of images enter (sources, tables, tars). What they have
in common is found out (survey, levels). They are decoded to uint8 (decoding) once (decoded; files
of it: cache) or whenever they are read (streaming), and divided into training and held-out
images (corpus). Batches of pixels and of random numbers leave (collator), and views made of both on
the device (augmentation, views).
"""
