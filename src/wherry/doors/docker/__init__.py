"""The Docker Engine API on the engine and the builder of this machine.

It translates and refuses by name; containers and images are the engine's, and nothing of them is kept here.
"""
