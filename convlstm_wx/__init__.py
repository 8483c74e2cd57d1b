"""Regional weather forecasting with ConvLSTM: train, forecast and evaluate from one NetCDF file.

In Python: ``from convlstm_wx import load_forecaster``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlstm_wx.forecast.api import load_forecaster

__version__ = "0.1.0"
__all__ = ["__version__", "load_forecaster"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: the package itself imports in no time."""
    if name == "load_forecaster":
        from convlstm_wx.forecast.api import load_forecaster

        return load_forecaster
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
