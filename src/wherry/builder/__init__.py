"""Images from Dockerfiles: text -> instructions -> a plan of stages and operations -> layers -> an image.

Everything up to the plan and its keys is pure. Running a step is the engine's work, packing a layer the content room's.
README.md has the terms and one walk through a build.
"""
