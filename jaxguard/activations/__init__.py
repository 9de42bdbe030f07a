"""What happens inside a network on given inputs: what its layers read, what reaches its norms, its feature maps."""
