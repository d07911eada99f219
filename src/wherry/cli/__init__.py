"""The `wherry` command: words in, words out. It speaks Docker's, Kubernetes' and our own API by socket.

It holds no logic of containers or clusters, and imports nearly nothing until a command needs it.
"""
