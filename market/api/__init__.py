"""The node's HTTP door: operations over the control socket, blobs over TCP."""
