"""Networks: the ConvLSTM layer, the encoder-forecaster and its upstream encoders. Tensors in, tensors out."""
