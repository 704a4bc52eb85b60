"""The main job as a program: a publisher, a relay, an origin, two peers and an operator, each a process of its own."""
