"""What runs on a laptop and is never deployed: the simulator and the commands."""
