"""Images at rest: blobs by digest, the documents that tie them together, and their ways in and out of this machine.

It is not the engine's list of images (names are only holders here), nor the registry's repositories: both stand on it.
"""
