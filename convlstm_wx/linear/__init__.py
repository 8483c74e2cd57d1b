"""What linear statistics of the training months can forecast: a rival of the network, and its partner in a blend."""
