"""What linear statistics of the training months can forecast: a rival of the network, or the base that it corrects."""
