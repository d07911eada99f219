"""All of wherry's kernel calls: mounts, namespaces, cgroups, processes, netlink, nftables.

It is thin and typed, and knows no pods, images or services; a refusal has the kernel's words (`Broken`).
Nothing here runs another program on a hot path, and nothing changes the namespaces of the daemon's own threads.
"""
