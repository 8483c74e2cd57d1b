"""Regional weather forecasting with ConvLSTM: train, forecast and evaluate from one NetCDF file."""

__version__ = "0.1.0"
