"""What training loops share: the one loop, and running averages of the weights."""
