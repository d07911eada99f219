"""The assembly: instances, their roles and processes, the warden. It alone knows all the other rooms.

It decides where things are and who runs what; it does none of their work.
"""
