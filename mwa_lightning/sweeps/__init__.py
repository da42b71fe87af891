"""Many runs from one command: each a process of its own, in a folder that can be gone on with."""
