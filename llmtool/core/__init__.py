"""The ground: knows files, configs, devices and checkpoints, and nothing of any learning problem."""
