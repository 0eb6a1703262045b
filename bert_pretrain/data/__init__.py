"""What text and images share.

Random numbers without state, what an update of a run is (`course`), the stream of rows and its
loader, work made ahead by a process of its own or shared over processes, readers of row files and
hashes of their content, files that appear whole, locks, and what lies in a run directory. Nothing
here knows a modality.
"""
