"""The agent of one node: brings the pods that the API binds to it nearer to their specs, and says how they are.

What is done next (`steps`), asked of the engine (`plans`) and reported (`status`) are pure functions; `worker` carries
them out. It schedules nothing, and knows the engine only by the protocol that a simulation keeps too.
"""
